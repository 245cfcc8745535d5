"""Who answers DPG-Bench's questions: a VQA model through transformers, or an OpenAI-compatible server.

The paper's judge is mPLUG-large. Another judge is another metric; `name` says which in the result.
"""

import base64
import io
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from l2p_eval.alignment import weights_sha256
from l2p_eval.errors import EvalError

_RETRIED = {408, 429, 500, 502, 503, 504}


class VqaJudge:
    """A visual-question-answering model (BLIP and its kin) in a local transformers directory."""

    def __init__(self, model: Path, *, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModelForVisualQuestionAnswering, AutoTokenizer

        if not (model / "config.json").is_file():
            raise EvalError(f"{model} is no transformers model directory: it has no config.json")
        try:
            self.processor = AutoImageProcessor.from_pretrained(model, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
            self.network = AutoModelForVisualQuestionAnswering.from_pretrained(model, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise EvalError(
                f"{model} holds no visual-question-answering model: {str(error).splitlines()[0][:160]}"
            ) from None
        self.network.eval().to(device)
        self.device = device
        self.name = f"{model.name} (transformers)"
        self.weights_sha256 = weights_sha256(model)

    @torch.inference_mode()
    def answer(self, image: Image.Image, question: str) -> bool:
        """Whether the model's answer is yes."""
        pixels = self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        text = self.tokenizer(question, return_tensors="pt")
        words = {key: text[key].to(self.device) for key in ("input_ids", "attention_mask")}
        if hasattr(self.network, "generate") and not hasattr(self.network, "classifier"):
            tokens = self.network.generate(pixel_values=pixels.to(self.device), **words, max_new_tokens=5)
            return says_yes(self.tokenizer.decode(tokens[0], skip_special_tokens=True))
        logits = self.network(
            pixel_values=pixels.to(self.device), **words
        ).logits  # a classifier over answers
        return says_yes(self.network.config.id2label[int(logits[0].argmax())])


@dataclass(frozen=True, kw_only=True)
class ServerJudge:
    """A vision-language model behind an OpenAI-compatible server (`vllm serve`, llama.cpp, a provider)."""

    base_url: str  # "http://127.0.0.1:8000/v1"
    model: str
    api_key: str | None = None
    timeout: float = 120.0  # s, per attempt
    attempts: int = 3  # only passing faults are retried

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise EvalError(f"{self.base_url!r} is no http address, such as http://127.0.0.1:8000/v1")

    @property
    def name(self) -> str:
        return f"{self.model} (server)"

    @property
    def weights_sha256(self) -> str:
        return ""  # the server's own; nobody here can see them

    def answer(self, image: Image.Image, question: str) -> bool:
        """Whether the server's answer is yes; greedy, one word."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": f"{question} Answer with yes or no only."},
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0.0,
            "max_tokens": 8,
        }
        return says_yes(self._ask(body))

    def _ask(self, body: dict[str, Any]) -> str:
        fault = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(min(0.2 * 3**attempt, 10.0))
            try:
                return str(self._post(body)["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                detail = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
                fault = f"HTTP {error.code}: {detail}"
                if error.code not in _RETRIED:
                    break
            except (urllib.error.URLError, TimeoutError, OSError) as error:
                fault = " ".join(str(error).split())
            except (ValueError, KeyError, IndexError, TypeError) as error:
                fault = f"an unexpected answer ({type(error).__name__})"
        raise EvalError(f"the judge {self.model!r} at {self.base_url} does not answer: {fault}")

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(
            f"{self.base_url.rstrip('/')}/chat/completions", data=json.dumps(body).encode(), headers=headers
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.load(response)


def says_yes(answer: str) -> bool:
    """Yes if the first word is; the published script takes anything else as no."""
    words = answer.strip().lower().replace(",", " ").replace(".", " ").split()
    return bool(words) and words[0] == "yes"

"""Who answers DPG-Bench's questions: a VQA model through transformers, or an OpenAI-compatible server.

The paper's judge is mPLUG-large. Another judge is another metric; `name` says which in the result.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from l2p_run.chat import ChatServer, NoAnswer, NoServer, complete
from l2p_run.errors import raised_as
from PIL import Image

from l2p_eval.errors import EvalError
from l2p_eval.user_models import (
    check_directory,
    describe_processor,
    directory_sha256,
    finite,
    load_network,
    load_part,
    weights_sha256,
)


class VqaJudge:
    """A visual-question-answering model (BLIP and its kin) in a local transformers directory."""

    def __init__(self, model: Path, *, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModelForVisualQuestionAnswering, AutoTokenizer

        check_directory(model)
        what = "visual-question-answering model"
        self.processor = load_part(AutoImageProcessor, model, what)
        self.tokenizer = load_part(AutoTokenizer, model, what)
        self.network = load_network(AutoModelForVisualQuestionAnswering, model, what).to(device)
        self.device = device
        self.name = f"{model.name} (transformers)"
        self.weights_sha256 = weights_sha256(model)
        self.preprocessing = describe_processor(self.processor)
        self.identity = ["transformers", directory_sha256(model)]

    @torch.inference_mode()
    def answer(self, image: Image.Image, question: str) -> bool:
        """Return whether the model's answer is yes."""
        pixels = self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        text = self.tokenizer(question, return_tensors="pt")
        words = {key: text[key].to(self.device) for key in ("input_ids", "attention_mask")}
        if hasattr(self.network, "generate") and not hasattr(self.network, "classifier"):
            found = self.network.generate(
                pixel_values=pixels.to(self.device),
                **words,
                max_new_tokens=5,
                output_logits=True,
                return_dict_in_generate=True,
            )
            finite(found.logits[0], self.name)
            return says_yes(self.tokenizer.decode(found.sequences[0], skip_special_tokens=True))
        logits = self.network(
            pixel_values=pixels.to(self.device), **words
        ).logits  # a classifier over answers
        return says_yes(self.network.config.id2label[int(finite(logits[0], self.name).argmax())])


@dataclass(frozen=True, kw_only=True)
class ServerJudge(ChatServer):
    """A vision-language model behind an OpenAI-compatible server (`vllm serve`, llama.cpp, a provider)."""

    def __post_init__(self) -> None:
        with raised_as(EvalError):
            super().__post_init__()

    @property
    def name(self) -> str:
        return f"{self.model} (server)"

    @property
    def weights_sha256(self) -> str:
        return ""  # the server's own; nobody here can see them

    @property
    def preprocessing(self) -> str:
        return "the server's own"

    @property
    def identity(self) -> list[str]:
        """What an answer depends on, as far as anybody here can see."""
        return ["server", self.base_url.rstrip("/"), self.model]

    def answer(self, image: Image.Image, question: str) -> bool:
        """Return whether the server's answer is yes; greedy, one word."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": f"{question} Answer with yes or no only."},
        ]
        body = {
            "messages": [{"role": "user", "content": content}],
            "temperature": 0.0,
            "max_tokens": 8,
        }
        try:
            return says_yes(complete(self, body, may_be_cut=True))
        except (NoServer, NoAnswer) as error:
            raise EvalError(f"the judge {self.model!r} at {self.base_url} does not answer: {error}") from None


def says_yes(answer: str) -> bool:
    """Yes if the first word is; the published script takes anything else as no."""
    words = answer.strip().lower().replace(",", " ").replace(".", " ").split()
    return bool(words) and words[0] == "yes"

"""Prompts and verdicts from any OpenAI-compatible server (`vllm serve`, llama.cpp, a provider), by HTTP
alone.

A `TextGenerator`: requests run in parallel threads, each with its own seed; what the server could not answer
becomes an answer that the parser rejects with the cause, so one bad row never ends a run.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from l2p_data.errors import DataError
from l2p_data.files import one_line
from l2p_data.llm import PromptRequest
from l2p_data.template import (
    ANSWER_SCHEMA,
    EXPANSION_SCHEMA,
    TEMPLATE_VERSION,
    VERDICT_SCHEMA,
    generation_message,
)

_RETRIED = {408, 429, 500, 502, 503, 504}  # HTTP states that pass


@dataclass(frozen=True, kw_only=True)
class OpenAIServer:
    """Where the server is, and how it is asked."""

    base_url: str  # "http://127.0.0.1:8000/v1"
    model: str
    api_key: str | None = None
    temperature: float = 0.9
    max_tokens: int = 512  # a longer answer counts as cut off
    parallel: int = 16  # requests at a time; the server batches them
    timeout: float = 120.0  # s, per attempt
    attempts: int = 3  # per request; only passing faults are retried
    structured: bool = True  # ask for schema-bound JSON; servers that do not know it are asked without

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise DataError(
                f"base_url {self.base_url!r} is no http address, such as http://127.0.0.1:8000/v1"
            )


class OpenAIGenerator:
    """Writes prompts (Fig. 10), judges them (Fig. 11), and extends the tree, through a server."""

    def __init__(self, server: OpenAIServer) -> None:
        self.server = server

    @property
    def name(self) -> str:
        return f"llm:{self.server.model}/template-{TEMPLATE_VERSION}"

    def generate(self, requests: Sequence[PromptRequest]) -> list[str]:
        """One answer per request, in order."""
        messages = [(generation_message(request), request.seed) for request in requests]
        return self._ask_all(messages, ANSWER_SCHEMA, self.server.temperature)

    def judge(self, messages: Sequence[str]) -> list[str]:
        """One verdict per message, in order, without randomness."""
        return self._ask_all([(message, 0) for message in messages], VERDICT_SCHEMA, 0.0)

    def expand(self, messages: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """New names for branches of the tree, one answer per message, in order."""
        pairs = list(zip(messages, seeds, strict=True))
        return self._ask_all(pairs, EXPANSION_SCHEMA, self.server.temperature)

    def _ask_all(
        self, messages: Sequence[tuple[str, int]], schema: dict[str, Any], temperature: float
    ) -> list[str]:
        if not messages:
            return []
        ask: Callable[[tuple[str, int]], str] = lambda item: self._ask(*item, schema, temperature)  # noqa: E731
        with ThreadPoolExecutor(self.server.parallel) as pool:
            return list(pool.map(ask, messages))

    def _ask(self, message: str, seed: int, schema: dict[str, Any], temperature: float) -> str:
        """The server's text, or a JSON object with "error" that says why there is none.

        Raises:
            DataError: the server cannot be reached or refuses every such request: no row could succeed.
        """
        server = self.server
        body: dict[str, Any] = {
            "model": server.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": temperature,
            "max_tokens": server.max_tokens,
            "seed": seed,
        }
        if server.structured:
            json_schema = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        fault = ""
        for attempt in range(server.attempts):
            if attempt:
                time.sleep(min(0.2 * 3**attempt, 10.0))
            try:
                return _text_of(self._post(body))
            except urllib.error.HTTPError as error:
                detail = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
                fault = f"HTTP {error.code}: {detail}"
                if error.code in (401, 403, 404):
                    raise DataError(
                        f"server {server.base_url} refuses model {server.model!r}: {fault}"
                    ) from error
                if error.code not in _RETRIED:
                    break
            except urllib.error.URLError as error:
                fault = one_line(error)
                if isinstance(error.reason, ConnectionRefusedError) and attempt == server.attempts - 1:
                    raise DataError(
                        f"no server answers at {server.base_url} ({fault}); start one first"
                    ) from error
            except (TimeoutError, OSError, ValueError) as error:
                fault = one_line(error)
        return json.dumps({"error": fault})

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.server.api_key:
            headers["Authorization"] = f"Bearer {self.server.api_key}"
        request = urllib.request.Request(
            f"{self.server.base_url.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers=headers,
        )
        with urllib.request.urlopen(request, timeout=self.server.timeout) as response:
            return json.load(response)


def _text_of(answer: Any) -> str:
    """The text of a chat completion; one that was cut off becomes an error, because half a prompt may look
    whole."""
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"unexpected answer {str(answer)[:100]}") from error
    if choice.get("finish_reason") == "length":
        return json.dumps({"error": "answer was cut off at max_tokens"})
    if not isinstance(text, str):
        raise ValueError("answer without text")
    return text

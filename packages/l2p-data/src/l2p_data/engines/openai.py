"""A chat engine: any OpenAI-compatible server (`vllm serve`, llama.cpp, a provider), by HTTP alone.

Requests run in parallel threads, each with its own seed; what the server could not answer becomes an answer
that the parser rejects with the cause, so one bad row never ends a run.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from l2p_data.corpus.files import one_line
from l2p_data.engines.chat import Message, fault
from l2p_data.errors import DataError

_RETRIED = {408, 429, 500, 502, 503, 504}  # HTTP states that pass


@dataclass(frozen=True, kw_only=True)
class OpenAIServer:
    """Where the server is, and how it is asked."""

    base_url: str  # "http://127.0.0.1:8000/v1"
    model: str
    api_key: str | None = None
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


class OpenAIEngine:
    """A `ChatEngine` over HTTP."""

    def __init__(self, server: OpenAIServer) -> None:
        self.server = server

    @property
    def name(self) -> str:
        return self.server.model

    def ask(
        self, messages: Sequence[Message], schema: Mapping[str, Any], temperature: float
    ) -> Iterator[tuple[int, str]]:
        """Answers as they come in, `server.parallel` requests at a time.

        Raises:
            DataError: the server cannot be reached or refuses every such request: no row could succeed.
        """
        with ThreadPoolExecutor(self.server.parallel) as pool:
            waiting = {
                pool.submit(self._answer, *message, schema, temperature): index
                for index, message in enumerate(messages)
            }
            try:
                for future in as_completed(waiting):
                    yield waiting[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # one error is enough; do not send the rest
                raise

    def _answer(self, message: str, seed: int, schema: Mapping[str, Any], temperature: float) -> str:
        """The server's text, or a fault that says why there is none."""
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
        cause = ""
        for attempt in range(server.attempts):
            if attempt:
                time.sleep(min(0.2 * 3**attempt, 10.0))
            try:
                return _text_of(self._post(body))
            except urllib.error.HTTPError as error:
                detail = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
                cause = f"HTTP {error.code}: {detail}"
                if error.code in (401, 403, 404):
                    raise DataError(
                        f"server {server.base_url} refuses model {server.model!r}: {cause}"
                    ) from error
                if error.code not in _RETRIED:
                    return fault(cause)
            except urllib.error.URLError as error:
                cause = one_line(error)
                if isinstance(error.reason, ConnectionRefusedError) and attempt == server.attempts - 1:
                    raise DataError(
                        f"no server answers at {server.base_url} ({cause}); start one first"
                    ) from error
            except (TimeoutError, OSError, ValueError) as error:
                cause = one_line(error)
        return fault(cause, may_pass=True)

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
        return fault("answer was cut off at max_tokens")
    if not isinstance(text, str):
        raise ValueError("answer without text")
    return text

"""A chat engine: any OpenAI-compatible server (`vllm serve`, llama.cpp, a provider), by HTTP alone.

Requests run in parallel threads, each with its own seed; what the server could not answer becomes an answer
that the parser rejects with the cause, so one bad row never ends a run.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from l2p_run.chat import ChatServer, NoAnswer, NoServer, complete
from l2p_run.errors import raised_as
from l2p_run.settings import setting

from l2p_data.engines.chat import Message, fault
from l2p_data.errors import DataError

# Blank space between the parts of a JSON object is legal, and some models write it without end.
_BLANKS = ["\n\n\n\n\n\n", " " * 24, "\t" * 8]


@dataclass(frozen=True, kw_only=True)
class OpenAIServer(ChatServer):
    """Where the server is, and how it is asked."""

    max_tokens: int = setting(512, ge=1, le=1_000_000)  # a longer answer counts as cut off
    parallel: int = setting(16, ge=1, le=4096)  # requests at a time; the server batches them
    structured: bool = True  # ask for schema-bound JSON; servers that do not know it are asked without

    def __post_init__(self) -> None:
        with raised_as(DataError):
            super().__post_init__()


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
        """Yield answers as they come in, `server.parallel` requests at a time.

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
        """Return the server's text, or a fault that says why there is none."""
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": message}],
            "temperature": temperature,
            "max_tokens": self.server.max_tokens,
            "seed": seed,
        }
        if self.server.structured:
            json_schema = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
            body["stop"] = _BLANKS
        try:
            answer = complete(self.server, body)
        except NoServer as error:
            raise DataError(str(error)) from error
        except NoAnswer as error:
            return fault(str(error), may_pass=error.may_pass)
        return fault("answer broke off in a run of blank space") if _broke_off(answer) else answer


def _broke_off(answer: str) -> bool:
    """Return whether an answer is the beginning of a JSON object: the stop at blank space ended it."""
    if not answer.lstrip().startswith("{") or answer.rstrip().endswith("}"):
        return False
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return True
    return False

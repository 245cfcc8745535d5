"""A chat model behind an OpenAI-compatible server (`vllm serve`, llama.cpp, a provider), by HTTP alone.

The model may be one that thinks first: what it thought is no part of its answer.
"""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from l2p_run.errors import UserError, one_line
from l2p_run.settings import check_settings, setting

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}  # HTTP states that pass
_REFUSED = {401, 403, 404}  # no message would fare better
_OPTIONAL = ("response_format", "stop", "seed")  # what a server that does not know it is asked without
_THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHTS = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THINKING = re.compile(r"\s*<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)


class NoServer(UserError):
    """The server cannot be reached, or refuses every such message."""


class NoAnswer(UserError):
    """One message could not be answered.

    Attributes:
        may_pass: asking again later could help.
    """

    def __init__(self, cause: str, *, may_pass: bool = False) -> None:
        super().__init__(cause)
        self.may_pass = may_pass


@dataclass(frozen=True, kw_only=True)
class ChatServer:
    """Where the server is, and how it is asked."""

    base_url: str  # "http://127.0.0.1:8000/v1"
    model: str
    api_key: str | None = None
    timeout: float = setting(120.0, gt=0, le=86_400)  # s, per attempt
    attempts: int = setting(3, ge=1, le=100)  # per message; only passing faults are retried

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.base_url.startswith(("http://", "https://")):
            raise UserError(
                f"base_url {self.base_url!r} is no http address, such as http://127.0.0.1:8000/v1"
            )


def complete(server: ChatServer, body: Mapping[str, Any], *, may_be_cut: bool = False) -> str:
    """Return the model's answer to a chat, without what it thought.

    Args:
        server: `server.model` is added to the body.
        body: of a chat completion: messages, temperature, max_tokens, ...
        may_be_cut: the beginning of an answer will do.

    Raises:
        NoServer: nobody answers, or the server refuses the model or the key.
        NoAnswer: this message has no answer, with the cause.
    """
    asked = {"model": server.model, **body}
    cause, attempt = "", 0
    while attempt < server.attempts:
        if attempt:
            time.sleep(min(0.2 * 3**attempt, 10.0))
        try:
            return _answer(_post(server, asked), may_be_cut)
        except urllib.error.HTTPError as error:
            detail = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
            cause = f"HTTP {error.code}: {detail}"
            if error.code in _REFUSED:
                raise NoServer(f"server {server.base_url} refuses model {server.model!r}: {cause}") from error
            if error.code in (400, 422) and (unknown := _unknown(detail, asked)):
                asked = {name: value for name, value in asked.items() if name != unknown}
                continue
            if error.code not in _RETRIED:
                raise NoAnswer(cause) from error
        except urllib.error.URLError as error:
            cause = one_line(error)
            if isinstance(error.reason, ConnectionRefusedError) and attempt == server.attempts - 1:
                raise NoServer(
                    f"no server answers at {server.base_url} ({cause}); start one first"
                ) from error
        except NoAnswer as error:
            if not error.may_pass:
                raise
            cause = str(error)
        except (OSError, ValueError, RecursionError) as error:
            cause = one_line(error)
        attempt += 1
    raise NoAnswer(cause, may_pass=True)


def _unknown(detail: str, body: Mapping[str, Any]) -> str:
    """Return the optional parameter that a server complains about; "" if it complains about something
    else.
    """
    return next((name for name in _OPTIONAL if name in body and re.search(rf"\b{name}\b", detail)), "")


def _post(server: ChatServer, body: Mapping[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    if server.api_key:
        headers["Authorization"] = f"Bearer {server.api_key}"
    request = urllib.request.Request(
        f"{server.base_url.rstrip('/')}/chat/completions", data=json.dumps(body).encode(), headers=headers
    )
    with urllib.request.urlopen(request, timeout=server.timeout) as response:
        return json.load(response)


def _answer(completion: Any, may_be_cut: bool) -> str:
    """Return the text of a chat completion; one that was cut off is an error, because half a text may look
    whole.
    """
    try:
        choice = completion["choices"][0]
        message = choice["message"]
        content = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise NoAnswer(f"an unexpected answer {str(completion)[:100]}", may_pass=True) from error
    thought = next((message[key] for key in ("reasoning_content", "reasoning") if message.get(key)), "")
    cut = choice.get("finish_reason") == "length"
    if isinstance(content, str) and content.strip():
        return answer_of(content, cut=cut, may_be_cut=may_be_cut)
    if not isinstance(thought, str) or not thought:
        raise NoAnswer("the answer has no text", may_pass=not cut)
    if cut:
        raise NoAnswer(
            "answer was cut off at max_tokens while the model was still thinking; raise max_tokens"
        )
    # A server that takes everything for a thought puts the answer at its end.
    after = answer_of(thought) if _END_OF_THOUGHTS.search(thought) else thought
    if found := _last_object(after):
        return found
    raise NoAnswer("the model thought and gave no answer; turn its thinking off")


def answer_of(text: str, *, cut: bool = False, may_be_cut: bool = False) -> str:
    """Return what a model said, without the thoughts before it.

    Args:
        cut: it ran into max_tokens.
        may_be_cut: what there is of it will do all the same.

    Raises:
        NoAnswer: it was cut off, or thought only.
    """
    answer = _THOUGHTS.sub("", text)
    if end := list(_END_OF_THOUGHTS.finditer(answer)):  # the template had opened the thoughts already
        answer = answer[end[-1].end() :]
    if _THINKING.match(answer):
        problem = "answer was cut off at max_tokens while the model was still thinking; raise max_tokens"
        raise NoAnswer(problem if cut else "the model thought and gave no answer; turn its thinking off")
    if cut and not may_be_cut:
        blank = len(answer) - len(answer.rstrip())
        raise NoAnswer(
            "answer was cut off at max_tokens" + (" in an endless run of blank space" if blank >= 16 else "")
        )
    return answer.strip() if answer != text else text


def _last_object(text: str) -> str:
    """Return the JSON object that a text ends with; "" if there is none."""
    text = text.strip().strip("`").strip()
    for start in (found.start() for found in re.finditer(r"\{", text)):
        try:
            if isinstance(json.loads(text[start:]), dict):
                return text[start:]
        except (ValueError, RecursionError):
            continue
    return ""

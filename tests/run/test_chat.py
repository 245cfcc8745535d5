"""What models behind OpenAI-compatible servers really send: thoughts, nothing, blanks, complaints."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from l2p_run.chat import ChatServer, NoAnswer, NoServer, answer_of, complete
from l2p_run.errors import UserError

JSON = '{"prompt": "A red kite over the dunes."}'


class Replies:
    """What the server sends, one after the other; the last again and again."""

    replies: ClassVar[list[tuple[int, Any]]] = []
    bodies: ClassVar[list[Any]] = []

    @classmethod
    def answer(cls, body: Any) -> tuple[int, Any]:
        cls.bodies.append(body)
        return cls.replies[0] if len(cls.replies) == 1 else cls.replies.pop(0)


@pytest.fixture
def server(serve_chat: Callable[..., str]) -> ChatServer:
    Replies.bodies.clear()
    return ChatServer(base_url=serve_chat(Replies.answer), model="m", attempts=2)


def message(finish: str = "stop", **fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": fields, "finish_reason": finish}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"content": JSON},
        {"content": f"<think>Kites are red. {{not json}}</think>\n\n{JSON}"},
        {"content": f"<thinking>\nhm\n</thinking>{JSON}"},
        {"content": f"hm, kites ...\n</think>\n{JSON}"},  # the template opened the thoughts
        {"content": JSON, "reasoning_content": "I thought of kites."},
        {"content": None, "reasoning_content": f"I thought of kites.</think>{JSON}"},
        {"content": "", "reasoning_content": f"Let me answer with {JSON}"},
        {"content": None, "reasoning": f"So:\n```json\n{JSON}\n```"},
    ],
)
def test_the_answer_of_a_model_that_thinks_is_what_comes_after_its_thoughts(
    server: ChatServer, fields: dict[str, Any]
) -> None:
    Replies.replies[:] = [(200, message(**fields))]
    assert complete(server, {"messages": []}) == JSON and len(Replies.bodies) == 1


@pytest.mark.parametrize(
    ("reply", "cause", "asked"),
    [
        (message(content=None, reasoning_content="Kites, kites, kites."), "thought and gave no answer", 1),
        (
            message("length", content=None, reasoning_content="Kites, "),
            "max_tokens while the model was still",
            1,
        ),
        (message("length", content="<think>Kites, "), "max_tokens while the model was still thinking", 1),
        (message(content="<think>Kites."), "thought and gave no answer", 1),
        (message("length", content='{"prompt": "A red'), "answer was cut off at max_tokens", 1),
        (message("length", content='{"prompt":' + " \n" * 300), "endless run of blank space", 1),
        (message(content=None), "has no text", 2),
        ({"choices": []}, "an unexpected answer", 2),
        ([1, 2], "an unexpected answer", 2),
        (b"<html>", "JSONDecodeError", 2),
        (b"[" * 50_000, "RecursionError", 2),
    ],
)
def test_a_message_without_an_answer_says_why_and_is_asked_again_only_where_that_can_help(
    server: ChatServer, reply: Any, cause: str, asked: int
) -> None:
    Replies.replies[:] = [(200, reply)]
    with pytest.raises(NoAnswer, match=cause) as caught:
        complete(server, {"messages": []})
    assert len(Replies.bodies) == asked and caught.value.may_pass == (asked == 2)


def test_what_a_server_does_not_know_is_left_out_and_the_rest_asked(server: ChatServer) -> None:
    complaint = {"error": {"message": "Unsupported parameter: 'stop' is not supported with this model."}}
    Replies.replies[:] = [
        (400, complaint),
        (422, {"detail": "seed: extra fields"}),
        (200, message(content=JSON)),
    ]
    body = {"messages": [], "stop": ["x"], "seed": 3, "response_format": {"type": "json_object"}}
    assert complete(server, body) == JSON
    assert [sorted(set(body) - set(sent)) for sent in Replies.bodies] == [[], ["stop"], ["seed", "stop"]]
    Replies.replies[:] = [(400, {"error": "prompt too long"})]
    with pytest.raises(NoAnswer, match=r"HTTP 400: .*prompt too long"):
        complete(server, body)


def test_a_server_that_refuses_everybody_or_is_gone_is_told_apart_from_one_bad_message(
    server: ChatServer,
) -> None:
    Replies.replies[:] = [(401, {"error": "no key"})]
    with pytest.raises(NoServer, match="refuses model 'm': HTTP 401"):
        complete(server, {"messages": []})
    gone = ChatServer(base_url="http://127.0.0.1:9/v1", model="m", attempts=1)
    with pytest.raises(NoServer, match="no server answers at"):
        complete(gone, {"messages": []})
    for wrong in ({"base_url": "ftp://x"}, {"timeout": float("nan")}, {"attempts": 0}):
        with pytest.raises(UserError):
            ChatServer(**{"base_url": "http://x", "model": "m", **wrong})


def test_half_an_answer_will_do_where_the_first_word_counts() -> None:
    assert answer_of("<think>a</think> Yes, because", cut=True, may_be_cut=True) == "Yes, because"
    with pytest.raises(NoAnswer):
        answer_of("Yes, because", cut=True)

"""Language models that think, loop, die or refuse: each costs its own prompts, with the cause."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from l2p_data import Category, DataError, generate_prompts
from l2p_data.engines import vllm_engine
from l2p_data.engines.chat import ChatGenerator
from l2p_data.engines.openai import OpenAIEngine, OpenAIServer
from l2p_data.filters.audit import parse_verdict

LEAF = Category(superclass="Nature", subclass="Objects", category="kite")


def thinker(body: Any) -> tuple[int, Any]:
    """A model that thinks before it answers, and fails in a way of its own every third time."""
    seed = body["seed"]
    answer = json.dumps({"prompt": f"A kite number {seed} over the dunes."})
    fields: dict[str, Any] = {"content": f"<think>{{'prompt': 1}}</think>{answer}"}
    if body["model"] == "mute":
        fields = {"content": None, "reasoning_content": "Hm."}
    elif seed % 3 == 1:
        fields = {"content": None, "reasoning_content": f"Fine.</think>{answer}"}
    elif seed % 3 == 2:
        fields = {"content": '{"prompt":' + body["stop"][0][:-1]}  # a server ends it at the stop
    return 200, {"choices": [{"message": fields, "finish_reason": "stop"}]}


@pytest.fixture
def url(serve_chat: Callable[..., str]) -> str:
    return serve_chat(thinker)


def test_a_model_that_thinks_writes_prompts_and_a_run_of_blanks_has_a_reason_of_its_own(url: str) -> None:
    generator = ChatGenerator(OpenAIEngine(OpenAIServer(base_url=url, model="thinks")))
    frame = generate_prompts(generator, 24, categories=[LEAF])
    good = frame.filter(pl.col("problem").is_null())
    assert good.height == 24 and good["prompt"].str.starts_with("A kite number").all()
    assert set(frame["problem"].drop_nulls()) == {"answer broke off in a run of blank space"}


def test_a_model_that_gives_no_answer_at_all_is_not_asked_for_ever(url: str) -> None:
    leaves = [Category(superclass="Nature", subclass="Objects", category=f"leaf {n}") for n in range(900)]
    generator = ChatGenerator(OpenAIEngine(OpenAIServer(base_url=url, model="mute")))
    with pytest.raises(DataError, match=r"no prompt among them.*the model thought and gave no answer"):
        generate_prompts(generator, 900, categories=leaves)


class Dying:
    """A chat engine that goes after a few answers."""

    name = "dying"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(
        self, messages: Sequence[tuple[str, int]], schema: Mapping[str, Any], temperature: float
    ) -> Iterator[tuple[int, str]]:
        for index, (message, _) in enumerate(messages):
            if len(self.asked) == 5:
                raise DataError("no server answers")
            self.asked.append(message)
            yield index, json.dumps({"is_valid": True, "reason": "Pass"})


def test_answers_that_came_before_a_server_went_are_kept(tmp_path: Path) -> None:
    engine = Dying()
    generator = ChatGenerator(engine, journal=tmp_path)
    with pytest.raises(DataError):
        generator.judge([f"message {number}" for number in range(9)])
    engine.asked.clear()
    again = ChatGenerator(engine, journal=tmp_path).judge([f"message {number}" for number in range(9)])
    assert len(again) == 9 and engine.asked == [f"message {number}" for number in range(5, 9)]


class EngineDeadError(Exception):
    """Named as vLLM's."""


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_engine_that_died_takes_its_actor_along_and_is_not_asked_message_by_message(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = vllm_engine._Replica.__new__(vllm_engine._Replica)
    calls: list[int] = []

    def chat(messages: Sequence[Any], schema: str, temperature: float) -> list[str]:
        calls.append(len(messages))
        if wrapped:
            raise RuntimeError("generation failed") from EngineDeadError("gone")
        raise EngineDeadError("gone")

    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended

    monkeypatch.setattr(replica, "_chat", chat, raising=False)
    monkeypatch.setattr(vllm_engine.os, "_exit", end)
    with pytest.raises(Ended):
        replica.answer([("a", 1), ("b", 2), ("c", 3)], "{}", 0.5)
    assert calls == [3]


def test_a_message_that_vllm_refuses_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = vllm_engine._Replica.__new__(vllm_engine._Replica)

    def chat(messages: Sequence[tuple[str, int]], schema: str, temperature: float) -> list[str]:
        if any(len(text) > 100 for text, _ in messages):
            raise ValueError("The prompt (longer than the maximum model length) is too long")
        return [f"answer to {text}" for text, _ in messages]

    monkeypatch.setattr(replica, "_chat", chat, raising=False)
    monkeypatch.setattr(replica, "llm", llm_with(unfinished=False), raising=False)
    answers = replica.answer([("a", 1), ("b" * 500, 2), ("c", 3)], "{}", 0.5)
    assert answers[0] == "answer to a" and answers[2] == "answer to c" and "too long" in answers[1]


def test_an_engine_that_breaks_in_a_batch_is_asked_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = vllm_engine._Replica.__new__(vllm_engine._Replica)
    asked: list[int] = []

    def chat(messages: Sequence[tuple[str, int]], schema: str, temperature: float) -> list[str]:
        asked.append(len(messages))
        raise RuntimeError("no room for the batch")

    monkeypatch.setattr(replica, "_chat", chat, raising=False)
    monkeypatch.setattr(replica, "llm", llm_with(unfinished=True), raising=False)
    with pytest.raises(RuntimeError, match="no room"):
        replica.answer([("a", 1), ("b", 2)], "{}", 0.5)
    assert asked == [2]


def llm_with(unfinished: bool) -> Any:
    return SimpleNamespace(llm_engine=SimpleNamespace(has_unfinished_requests=lambda: unfinished))


def test_answers_of_vllm_come_without_thoughts_and_say_why_they_are_none() -> None:
    def text(content: str, finish: str = "stop") -> str:
        return vllm_engine._text_of(SimpleNamespace(text=content, finish_reason=finish))

    assert text('<think>so</think>{"prompt": "a"}') == '{"prompt": "a"}'
    assert "blank space" in text('{"prompt": ' + "\n" * 400, "length")
    assert "still thinking" in text("<think>so, " * 3, "length")
    assert parse_verdict(text("<think>so"))[0] == "audit-unanswered"


def test_vllm_is_told_to_write_no_blank_space_unless_the_caller_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setitem(
        __import__("sys").modules, "vllm", SimpleNamespace(LLM=lambda **options: given.append(options))
    )
    settings = {"model": "m", "max_model_len": 900}
    vllm_engine._Replica("m", vllm_engine.VLLMSettings(**settings), True)
    own = {"structured_outputs_config": {"backend": "guidance"}, "seed": 4}
    vllm_engine._Replica("m", vllm_engine.VLLMSettings(**settings, engine_kwargs=own), True)
    assert given[0]["structured_outputs_config"] == {"backend": "xgrammar", "disable_any_whitespace": True}
    assert given[1]["structured_outputs_config"] == {"backend": "guidance"} and given[1]["seed"] == 4

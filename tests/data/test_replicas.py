"""What becomes of a batch whose replica of the language model is lost; Ray and vLLM are stood for, because no
node dies on command here (tests/apps/test_cluster.py and tests/data/vllm kill real ones)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from l2p_data import DataError
from l2p_data.engines.vllm_engine import VLLMEngine, VLLMSettings
from ray.exceptions import ActorUnavailableError, RayTaskError

MESSAGES = [(f"message {index}", index) for index in range(6)]


class Replica:
    """Answers at once, or is away as `away`, told how often it was asked so far, says."""

    def __init__(self, away: Callable[[int, Sequence[Any]], bool], error: Exception | None = None) -> None:
        self.away, self.asked, self.done = away, 0, 0
        self.error = error or ActorUnavailableError("its node is gone", None)
        self.answer = SimpleNamespace(remote=self._answer)
        self.fault = SimpleNamespace(remote=lambda: self._reply([], None))

    def _answer(self, batch: Sequence[Any], schema: str, temperature: float) -> Any:
        return self._reply(batch, [f"answer to {text}" for text, _ in batch])

    def _reply(self, batch: Sequence[Any], answer: Any) -> Any:
        self.asked += 1
        if self.away(self.asked, batch):
            return SimpleNamespace(value=self.error)
        self.done += len(batch)
        return SimpleNamespace(value=answer)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, str]]:
    """The answers of some replicas, batch by batch of two messages."""

    def get(reference: Any) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    class Reference(SimpleNamespace):
        __hash__ = object.__hash__

    monkeypatch.setitem(globals(), "SimpleNamespace", Reference)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda references, num_returns: (references[:1], references[1:]))
    monkeypatch.setattr("l2p_data.engines.vllm_engine.find_spec", lambda name: True)
    monkeypatch.setattr("l2p_data.engines.replicas.PAUSE", 0.0)
    (tmp_path / "config.json").write_text("{}")

    def made(*replicas: Replica, patience: float = 60.0) -> dict[int, str]:
        monkeypatch.setattr(VLLMEngine, "_start", lambda engine: list(replicas))
        engine = VLLMEngine(VLLMSettings(model=tmp_path, messages_per_call=2, patience=patience))
        found = list(engine.ask(MESSAGES, {}, 1.0))
        assert len(found) == len(dict(found))  # none twice
        return dict(found)

    return made


ANSWERS = {index: f"answer to {text}" for text, index in MESSAGES}


def test_a_replica_that_is_away_for_long_costs_no_answer(ask: Callable[..., dict[int, str]]) -> None:
    assert ask(Replica(lambda asked, batch: asked < 50 and asked > 1)) == ANSWERS


def test_another_replica_takes_the_batches_of_one_that_never_returns(
    ask: Callable[..., dict[int, str]],
) -> None:
    gone, there = Replica(lambda asked, batch: True), Replica(lambda asked, batch: False)
    assert ask(gone, there) == ANSWERS
    assert (gone.done, there.done) == (0, 6)


def test_a_batch_that_kills_every_replica_is_given_up_and_the_others_are_answered(
    ask: Callable[..., dict[int, str]],
) -> None:
    found = ask(Replica(lambda asked, batch: ("message 2", 2) in batch))
    assert {index: text for index, text in found.items() if index not in (2, 3)} == {
        index: text for index, text in ANSWERS.items() if index not in (2, 3)
    }
    assert all("replicas died 3 times over this batch" in found[index] for index in (2, 3))


def test_a_replica_whose_vllm_breaks_is_started_again_and_the_cause_is_told(
    ask: Callable[..., dict[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[Any, bool]] = []
    monkeypatch.setattr(ray, "kill", lambda replica, no_restart: killed.append((replica, no_restart)))
    error = RayTaskError("answer", "a traceback", RuntimeError("no room for the batch"))
    replica = Replica(lambda asked, batch: ("message 2", 2) in batch, error)
    found = ask(replica)
    assert {index for index, text in found.items() if text == ANSWERS[index]} == {0, 1, 4, 5}
    assert all("RuntimeError: no room for the batch" in found[index] for index in (2, 3))
    assert killed == [(replica, False)] * 3


def test_a_replica_that_is_lost_for_good_is_one_line(ask: Callable[..., dict[int, str]]) -> None:
    with pytest.raises(DataError, match="has been lost for 0 s; give the cluster back a node"):
        ask(Replica(lambda asked, batch: True), patience=0.0)

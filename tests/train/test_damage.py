"""What is damaged in a run and can be made again counts as missing; nothing ends in a traceback."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
from l2p_train import TrainConfig, TrainError
from l2p_train.report.metrics import last_loss, read_metrics
from l2p_train.run.checkpoint import list_checkpoints
from l2p_train.run.run_directory import TrainResult, latest_checkpoint, read_result

DAMAGE = [
    "",
    "{",
    "[]",
    "5",
    "null",
    '"x"',
    "{}",
    '{"format": 1}',
    '{"step": "x", "files": {}, "config": {}}',
]


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A run with two checkpoints and a result."""
    config = TrainConfig(model=Path("m"), corpus=Path("c"), output=tmp_path / "run", steps=4)
    for step in (2, 4):
        folder = config.output / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        state = {"format": 1, "step": step, "files": {}, "config": config.to_dict(), "base": "b"}
        (folder / "state.json").write_text(json.dumps(state))
    (config.output / "model").mkdir()
    result = TrainResult("model", 4, 0.5, 1.0, 1.0, 1.0, 1, 1)
    (config.output / "result.json").write_text(json.dumps(asdict(result)))
    return config


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    config: TrainConfig, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (config.output / "checkpoints" / "step-000004" / "state.json").write_text(damage)
    (config.output / "checkpoints" / "step-abc").mkdir()
    with caplog.at_level(logging.WARNING):
        last = latest_checkpoint(config, "b")
    assert last is not None and last.step == 2
    assert "step-000004/state.json is damaged" in caplog.text


def test_a_checkpoint_of_another_format_is_refused_and_not_overlooked(config: TrainConfig) -> None:
    path = config.output / "checkpoints" / "step-000004" / "state.json"
    path.write_text('{"format": 7}')
    with pytest.raises(TrainError, match="checkpoint format 7; this version reads 1"):
        list_checkpoints(config.output / "checkpoints")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_made_again(config: TrainConfig, damage: str) -> None:
    assert read_result(config) is not None
    (config.output / "result.json").write_text(damage)
    assert read_result(config) is None


def test_metrics_that_were_torn_or_overwritten_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for torn in (b'{"loss": ', b"5\n", b"\xff\xfe\n", b"[" * 50_000):
        path.write_bytes(b'{"event": "step", "loss": 0.5}\n' + torn)
        assert [record["loss"] for record in read_metrics(path)] == [last_loss(path)] == [0.5]

"""What is damaged in a run and can be made again counts as missing; nothing ends in a traceback."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from l2p_run.folder import lock_holder
from l2p_train import TrainConfig, TrainError
from l2p_train.errors import Interrupted
from l2p_train.report.metrics import last_loss, read_metrics
from l2p_train.run.checkpoint import list_checkpoints
from l2p_train.run.export import _earlier_base_hash, base_hash, check_base
from l2p_train.run.run_directory import TrainResult, latest_checkpoint, only_run, read_result
from safetensors.torch import save_file

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


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A transformer of 4 MB whose middle no header and no first MiB holds."""
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.zeros(1 << 20)}, folder / "diffusion_pytorch_model.safetensors")
    return tmp_path / "model"


def change_the_middle(model: Path, when: float) -> None:
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    with path.open("r+b") as file:
        file.seek(3 << 20)
        file.write(b"changed")
    os.utime(path, (when, when))


def test_every_byte_of_the_first_model_counts(config: TrainConfig, model: Path) -> None:
    base = base_hash(model)
    check_base(base, base, model, 0.0, config.output)
    change_the_middle(model, 0.0)
    assert base_hash(model) != base
    with pytest.raises(TrainError, match="trained from another model"):
        check_base(base, base_hash(model), model, 1e12, config.output)


def test_a_run_of_an_earlier_version_goes_on_with_the_model_that_it_began_with(
    config: TrainConfig, model: Path
) -> None:
    """Its note is of the first MiB: it counts while no file is younger than the note."""
    noted = _earlier_base_hash(model)
    for path in config.output.rglob("state.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base": noted}))
    change_the_middle(model, 0.0)
    last = latest_checkpoint(replace(config, model=model), base_hash(model))
    assert last is not None and last.step == 4
    change_the_middle(model, time.time() + 60)
    with pytest.raises(TrainError, match=r"written after the newest checkpoint .* touch -d"):
        latest_checkpoint(replace(config, model=model), base_hash(model))
    with (model / "transformer" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(TrainError, match="trained from another model"):
        latest_checkpoint(replace(config, model=model), base_hash(model))


HOLD = """
import sys
from pathlib import Path
from l2p_run.folder import lock
path = Path(sys.argv[1])
with lock(path, busy=""):
    print("held", flush=True)
    sys.stdin.readline()
    path.with_name("checkpoint").touch()
"""


def holding(path: Path, launcher: int) -> "subprocess.Popen[str]":
    """A process with a run's lock, started by `launcher` for all that it knows. A line lets it end."""
    environment = os.environ | {"L2P_TRAIN_PARENT": str(launcher)}
    command = [sys.executable, "-c", HOLD, str(path)]
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_a_process_whose_launcher_was_killed_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends only after this one has said that it waits, and not before it has written its checkpoint."""
    with holding(tmp_path / ".lock", launcher=2**22 + 1) as child:  # no process has this number

        def let_it_end(record: logging.LogRecord) -> bool:
            assert f"waiting for process {child.pid}" in record.getMessage() and child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
            return True

        logger = logging.getLogger("l2p_train.run.run_directory")
        logger.addFilter(let_it_end)
        try:
            with caplog.at_level(logging.INFO, logger.name), only_run(tmp_path, 0):
                assert (tmp_path / "checkpoint").exists()
        finally:
            logger.removeFilter(let_it_end)
            child.kill()


def test_a_living_run_keeps_its_folder_and_is_named(tmp_path: Path) -> None:
    with holding(tmp_path / ".lock", launcher=os.getpid()) as child:
        wanted = rf"another run is training in .* \(process {child.pid}\); wait for it or stop it"
        with pytest.raises(TrainError, match=wanted), only_run(tmp_path, 0):
            pass
        assert child.poll() is None, "nobody took its lock"
        child.kill()
        child.wait()
        with only_run(tmp_path, 0):  # a lock of a dead process blocks nobody
            assert lock_holder(tmp_path / ".lock") == os.getpid()
    assert lock_holder(tmp_path / ".lock") is None


def test_a_signal_ends_the_waiting(tmp_path: Path) -> None:
    with holding(tmp_path / ".lock", launcher=2**22 + 1) as child:
        with pytest.raises(Interrupted), only_run(tmp_path, 0, stop=[signal.SIGTERM]):
            pass
        child.kill()


def test_metrics_that_were_torn_or_overwritten_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for torn in (b'{"loss": ', b"5\n", b"\xff\xfe\n", b"[" * 50_000):
        path.write_bytes(b'{"event": "step", "loss": 0.5}\n' + torn)
        assert [record["loss"] for record in read_metrics(path)] == [last_loss(path)] == [0.5]

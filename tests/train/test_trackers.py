"""Curves and pictures, read back through each tracker's own library."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from l2p_train import TrainConfig, TrainError
from l2p_train.report.metrics import Reporter
from PIL import Image

LOSSES = [0.5, 0.25]


def config(output: Path, **changes) -> TrainConfig:
    return TrainConfig(model=Path("m"), corpus=Path("c"), output=output, **changes)


def report(settings: TrainConfig, first_step: int = 0) -> None:
    """Report a step with each loss and a picture, as a run does."""
    settings.output.mkdir(parents=True, exist_ok=True)
    picture = settings.output / "picture.png"
    Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8)).save(picture)
    reporter = Reporter(settings, active=True, first_step=first_step, on_event=None)
    for index, loss in enumerate(LOSSES):
        reporter.step(first_step + index + 1, 10, 4, loss=loss, epoch=0)
    reporter.event("validation", step=first_step + 2, loss=0.75)
    reporter.image("samples", picture, first_step + 2)
    reporter.close()


def test_tensorboard_holds_what_was_reported(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report(config(tmp_path))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [event.value for event in board.Scalars("validation_loss")] == [0.75]
    assert [event.step for event in board.Images("samples")] == [2]


def test_wandb_offline_holds_what_was_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without an account and a network: WANDB_MODE=offline, and the run's own file is read back."""
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    report(config(tmp_path / "run", trackers=("wandb",), tensorboard=False))
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    rows = wandb_history(path)
    assert [row["loss"] for row in rows if "loss" in row] == LOSSES
    assert [row["validation_loss"] for row in rows if "validation_loss" in row] == [0.75]
    assert any(name.startswith("samples") for row in rows for name in row)


def wandb_history(path: Path) -> list[dict]:
    """Read the run's file, LevelDB's log format; W&B's service ends it in its own time."""
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        records = []
        for data in leveldb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            records.append(record)
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.2)
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log: blocks of 32 KiB, parts with checksum, length and kind; 7 bytes lead."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # no header fits into what is left of a block
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield parts
            parts = b""


READ_TRACKIO = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_trackers import config, report
settings = config(Path(sys.argv[1]), trackers=("trackio",), tensorboard=False, tracker_project="l2p-test")
report(settings)
report(settings, first_step=2)  # a run that resumes goes on in the same curves
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("l2p-test")
logs = SQLiteStorage.get_logs("l2p-test", run)
curves = [[row[name] for row in logs if name in row] for name in ("loss", "validation_loss")]
print("FOUND " + json.dumps([*curves, any("samples" in row for row in logs)]))
"""


def test_trackio_holds_what_was_reported_and_a_resumed_run_goes_on(tmp_path: Path):
    """In a process of its own: trackio fixes its folder when it is imported."""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", READ_TRACKIO, str(tmp_path / "run"), str(Path(__file__).parent)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    (found,) = [line for line in ended.stdout.splitlines() if line.startswith("FOUND ")]
    assert json.loads(found.removeprefix("FOUND ")) == [LOSSES * 2, [0.75, 0.75], True]


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainError, match=r"'wandb', but .* is not installed; install l2p-train\[wandb\]"):
        report(config(tmp_path, trackers=("wandb",)))


def test_a_tracker_that_refuses_is_one_line_and_a_bug_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import wandb

    def refuse(**_: object) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(
        TrainError, match=r"'wandb', which refuses: UsageError: api_key not configured.*WANDB_MODE=offline"
    ):
        report(config(tmp_path, trackers=("wandb",)))
    monkeypatch.setattr(wandb, "init", lambda **_: {}["a bug of ours"])
    with pytest.raises(KeyError):
        report(config(tmp_path, trackers=("wandb",)))

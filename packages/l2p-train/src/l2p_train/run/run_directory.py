"""What makes a run's directory safe to use again: one run at a time, the same settings, an orderly stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from l2p_run.errors import disk_is_full, raised_as
from l2p_run.folder import lock
from l2p_run.places import read_json_if_whole, write_json

from l2p_train.config import TrainConfig, differences
from l2p_train.errors import TrainError
from l2p_train.run.checkpoint import Checkpoint, list_checkpoints


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves; also `output/result.json`."""

    model: str  # the final model directory, for `L2PPipeline.from_pretrained`
    steps: int
    loss: float  # mean of the last interval
    seconds: float  # wall time of the last session of the run
    images_per_second: float
    peak_memory_mb: float  # of process 0
    trainable_parameters: int
    frozen_parameters: int


def read_result(config: TrainConfig) -> TrainResult | None:
    """Return the result of a run that is complete, else None; raise `TrainError` if it was another run.

    One that is damaged counts as none: the run makes it again from its newest checkpoint.
    """
    with raised_as(TrainError):
        values = read_json_if_whole(config.output / "result.json") or {}
    names = {each.name for each in fields(TrainResult)}
    if values.keys() != names or not isinstance(values["steps"], int):
        return None
    result = TrainResult(**values | {"model": str(config.output / "model")})  # it may have been moved
    found = list_checkpoints(config.output / "checkpoints")
    if found:
        _check_same(config, found[-1].state)
    else:  # fetched from a mirror, without the checkpoints
        with raised_as(TrainError):
            note = read_json_if_whole(config.output / "model" / "training.json") or {}
        if isinstance(note.get("config"), dict):
            _check_same(config, note)
    return result if result.steps == config.steps and Path(result.model).is_dir() else None


def write_result(config: TrainConfig, result: TrainResult) -> None:
    """Write result.json, which marks the run as complete."""
    with raised_as(TrainError):
        write_json(config.output / "result.json", asdict(result))


def latest_checkpoint(config: TrainConfig, base: str) -> Checkpoint | None:
    """Return where to resume, or None for a new run.

    Raises:
        TrainError: the directory holds a run with other settings or from another model; or one that is
        further already.
    """
    found = list_checkpoints(config.output / "checkpoints")
    if not found:
        return None
    last = found[-1]
    _check_same(config, last.state)
    if last.state.get("base") != base:
        raise TrainError(
            f"{config.output} was trained from another model than {config.model}; use another output"
        )
    if last.step > config.steps:
        raise TrainError(
            f"{config.output} has {last.step} steps already, over steps = {config.steps}; use another output"
        )
    return last


def _check_same(config: TrainConfig, state: dict[str, Any]) -> None:
    changed = differences(state["config"], config)
    if changed:
        raise TrainError(
            f"{config.output} holds a run with other settings ({'; '.join(changed)}); use another output"
        )


@contextmanager
def only_run(output: Path, rank: int) -> Iterator[None]:
    """Hold the directory's lock in process 0; it goes with the process, however that ends."""
    with raised_as(TrainError):
        if rank:
            yield
            return
        busy = f"another run is training in {output}; wait for it or stop it"
        with lock(output / ".lock", busy=busy, remedy="choose another output directory"):
            yield


@contextmanager
def explain_full_disk(output: Path) -> Iterator[None]:
    """Turn the error of a full disk into what to do. Checkpoints appear whole: the newest one is intact."""
    try:
        yield
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise TrainError(
            f"a disk is full ({error}); free some space for {output} and run again: it goes on from the "
            "newest checkpoint"
        ) from error


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yield a one-element list that SIGINT and SIGTERM fill with their number instead of ending us."""
    stop = [0]
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # a Ray worker: the trainer around us stops it
        yield stop
        return

    def remember(number: int, _frame: Any) -> None:
        stop[0] = stop[0] or number

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What makes a run's directory safe to use again: one run at a time, the same settings, an orderly stop."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from l2p_run.errors import disk_is_full, raised_as
from l2p_run.folder import lock, lock_holder
from l2p_run.places import read_json_if_whole, write_json

from l2p_train.config import TrainConfig, differences
from l2p_train.errors import Interrupted, TrainError
from l2p_train.run.checkpoint import Checkpoint, list_checkpoints
from l2p_train.run.export import base_hash, check_base

logger = logging.getLogger(__name__)
_PATIENCE = 600.0  # s for a step and a checkpoint of a run whose launcher is gone


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


def check_apart(config: TrainConfig) -> None:
    """Raise `TrainError` where the finished model would replace the one it starts from, or lie in it."""
    model, output = config.model, config.output
    if not (model / "transformer").is_dir():  # no model, which is said elsewhere
        return
    start, folder = model.resolve(), output.resolve()
    written = (output / "model").resolve()
    if start == written or written in start.parents:
        raise TrainError(
            f"model is {model}, and output is {output}, which gets the finished model as {output / 'model'}: "
            "the run would replace what it starts from; use another output"
        )
    if start == folder or start in folder.parents:
        raise TrainError(f"output is {output}, inside the model that the run starts from; use another output")


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
    written = config.output / "model" / "training.json"
    with raised_as(TrainError):
        # One fetched from a mirror comes without the checkpoints.
        note = found[-1].state if found else read_json_if_whole(written) or {}
    if isinstance(note.get("config"), dict):
        _check_same(config, note)
        if (
            "base" in note and (config.model / "transformer" / "config.json").is_file()
        ):  # it may be gone by now
            since = (found[-1].path / "state.json" if found else written).stat().st_mtime
            check_base(str(note["base"]), base_hash(config.model), config.model, since, config.output)
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
    written = (last.path / "state.json").stat().st_mtime
    check_base(str(last.state.get("base")), base, config.model, written, config.output)
    if last.step > config.steps:
        raise TrainError(
            f"{config.output} has {last.step} steps already, over steps = {config.steps}; use another output"
        )
    return last


def check_same_corpus(last: Checkpoint, corpus: str, config: TrainConfig) -> None:
    """Raise `TrainError` if a run that resumes had other rows: the order and what is held out would change.

    Args:
        last: where it resumes; one of an earlier version does not say what its corpus was.
        corpus: `Corpus.digest` now.
    """
    if last.state.get("corpus", corpus) != corpus:
        raise TrainError(
            f"{config.output} was trained on other images than {config.corpus} holds; give it the corpus "
            "that it began with, or use another output"
        )


def steps_done(output: Path) -> int:
    """Return the steps of the newest checkpoint of a training, 0 where there is none."""
    names = [folder.name for folder in (output / "checkpoints").glob("step-*")]
    return max(
        (int(number) for name in names if (number := name.removeprefix("step-")).isdecimal()), default=0
    )


def _check_same(config: TrainConfig, state: dict[str, Any]) -> None:
    changed = differences(state["config"], config)
    if changed:
        raise TrainError(
            f"{config.output} holds a run with other settings ({'; '.join(changed)}); use another output"
        )


@contextmanager
def only_run(output: Path, rank: int, stop: Sequence[int] = (0,)) -> Iterator[None]:
    """Hold the directory's lock in process 0; it goes with the process, however that ends.

    A process whose launcher was killed is about to end, after a checkpoint: that one is waited for.

    Args:
        stop: filled by `stop_signals`.

    Raises:
        TrainError: another run holds it, on this machine or on another that shares the folder.
        Interrupted: a signal came while waiting.
    """
    if rank:
        yield
        return
    path = output / ".lock"
    _wait_for_orphan(path, stop)
    holder = lock_holder(path)
    who = f"another run is training in {output}" + (f" (process {holder})" if holder else "")
    busy, remedy = f"{who}; wait for it or stop it", "choose another output directory"
    with raised_as(TrainError), lock(path, busy=busy, remedy=remedy):
        yield


def _wait_for_orphan(path: Path, stop: Sequence[int]) -> None:
    end, said = time.monotonic() + _PATIENCE, False
    while (holder := lock_holder(path)) and _is_orphan(holder) and time.monotonic() < end:
        if not said:
            logger.info("waiting for process %d, whose launcher was killed, to write its checkpoint", holder)
            said = True
        if stop[0]:
            raise Interrupted(stop[0], 0)
        time.sleep(0.2)


def _is_orphan(process: int) -> bool:
    """Return whether a training process of this machine has lost the launcher that started it."""
    place = Path("/proc") / str(process)
    try:
        launcher = re.search(rb"(?:^|\0)L2P_TRAIN_PARENT=(\d+)", (place / "environ").read_bytes())
        parent = (place / "stat").read_bytes().rpartition(b")")[2].split()[1]
    except (OSError, IndexError):  # it has ended, or is somebody else's
        return False
    return launcher is not None and launcher[1] != parent


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

"""Start a run on this machine: one process per GPU (or some on the CPU), signals handed on, exit codes kept.

Each process is `python -m l2p_train CONFIG` with torchrun's environment variables; under torchrun, the
deepspeed launcher or Ray Train the same entry works unchanged, on any number of nodes. We start the
processes of one machine ourselves because torchrun turns every exit code into 1 and takes seconds to start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_run.errors import raised_as
from l2p_run.places import make_folder, write_json

from l2p_train.config import TrainConfig
from l2p_train.data.shards import check_corpus
from l2p_train.errors import Interrupted, NonFiniteLossError, TrainError
from l2p_train.machine.processes import check_processes, process_environments, usable_gpus
from l2p_train.report.metrics import read_metrics
from l2p_train.run.export import base_hash
from l2p_train.run.mirror import Mirror
from l2p_train.run.run_directory import TrainResult, check_apart, latest_checkpoint, read_result

STOP = (signal.SIGINT, signal.SIGTERM)
GRACE = 60.0  # s that the others have once a process has ended after a signal


def launch(
    config: TrainConfig, processes: int = 1, on_event: Callable[[dict[str, Any]], None] | None = None
) -> TrainResult:
    """Train in `processes` processes of this machine and return the result.

    Args:
        config: the settings; a copy for the processes is written to `output/train.json`.
        processes: on GPUs one per GPU, on the CPU any number whose product with threads fills the cores.
        on_event: called with each new record of `output/metrics.jsonl`.

    Raises:
        TrainError, NonFiniteLossError, Interrupted: as `train`.
        RuntimeError: a process failed by a bug; its log is `output/logs/rank-N.log`.
    """
    check_apart(config)
    config.batch_layout(processes)
    gpus = usable_gpus()
    check_processes(processes, gpus)
    mirror = Mirror(config)
    mirror.fetch()
    finished = read_result(config)
    if finished is not None:
        mirror.catch_up()
        return finished
    latest_checkpoint(config, base_hash(config.model))  # mistakes that need no process to be found
    check_corpus(config.corpus)
    logs = config.output / "logs"
    path = config.output / "train.json"
    with raised_as(TrainError):
        make_folder(logs, "choose another output directory")
        write_json(path, config.to_dict())
    with _noted_signals() as signals:
        children = _start(path, process_environments(processes, on_gpus=gpus > 0), logs)
        codes = _wait(children, config.output / "metrics.jsonl", on_event, signals)
    return _outcome(config, codes, logs)


def _start(path: Path, environments: list[dict[str, str]], logs: Path) -> list[subprocess.Popen[bytes]]:
    """Start the processes. Each has its signals blocked until it can end in an orderly way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # inherited; __main__ unblocks
    children = []
    try:
        for rank, environment in enumerate(environments):
            with (logs / f"rank-{rank}.log").open("wb") as log:  # the child has its own copy
                child = subprocess.Popen(
                    [sys.executable, "-m", "l2p_train", str(path)],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches only us, and each process gets the signal once
                )
            children.append(child)
        return children
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Yield a list that signals are added to, until they are handed on."""
    signals: list[int] = []
    before: dict[int, Any] = {}
    try:
        for one in STOP:
            before[one] = signal.signal(one, lambda number, _frame: signals.append(number))
    except ValueError:  # not in the main thread: our caller handles signals
        pass
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(
    children: list[subprocess.Popen[bytes]],
    metrics: Path,
    on_event: Callable[[dict[str, Any]], None] | None,
    signals: list[int],
) -> list[int]:
    """Hand on signals and metrics until all processes have ended; if one fails, end the others.

    One that waits for a process which was interrupted and is gone would do so for the hours of a collective's
    timeout: it is ended after `GRACE` and counts as interrupted, too.
    """
    overdue: set[int] = set()
    follow = _Follower(metrics, since=time.time())
    stopped: float | None = None  # when the first one ended after a signal
    try:
        while any(child.poll() is None for child in children):
            while signals:
                _send(children, signals.pop(0))
            for record in follow.new_records():
                if on_event is not None:
                    on_event(record)
            if any(_code(child) not in (None, 0, 130, 143) for child in children):
                time.sleep(2)  # let the others find out by themselves
                _kill(children)
            stopped = stopped or (time.monotonic() if _interrupted(children) else None)
            if stopped and time.monotonic() - stopped > GRACE:
                overdue |= _kill(children)
            time.sleep(0.1)
        for record in follow.new_records():
            if on_event is not None:
                on_event(record)
        codes = [_code(child) or 0 for child in children]
        late = [rank in overdue and code == -signal.SIGKILL for rank, code in enumerate(codes)]
        return [
            _interrupted(children) if is_late else code for is_late, code in zip(late, codes, strict=True)
        ]
    finally:
        _kill(children)


def _send(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _code(child: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code of one that has ended; a signal that it did not handle is an interruption, too."""
    code = child.poll()
    return 128 - code if code is not None and -code in STOP else code


def _kill(children: list[subprocess.Popen[bytes]]) -> set[int]:
    """Kill those that still run; return which."""
    running = {rank for rank, child in enumerate(children) if child.poll() is None}
    for rank in running:
        children[rank].kill()
    return running


def _interrupted(children: list[subprocess.Popen[bytes]]) -> int:
    """Return the exit code of one that ended after a signal, 0 if none did."""
    return next((code for child in children if (code := _code(child)) in (130, 143)), 0)


def _outcome(config: TrainConfig, codes: list[int], logs: Path) -> TrainResult:
    """Turn exit codes into a result or an exception."""
    if all(code == 0 for code in codes):
        result = read_result(config)
        if result is None:
            raise RuntimeError(f"the run ended without a result; see {logs}")
        return result
    stopped = [code for code in codes if code in (130, 143)]
    if stopped and all(code in (0, 130, 143) for code in codes):
        records = read_metrics(config.output / "metrics.jsonl")
        steps = [record["step"] for record in records if record.get("event") == "interrupted"]
        raise Interrupted(stopped[0] - 128, steps[-1] if steps else 0)
    # The rank that failed by itself, not one that we killed or that lost its peer.
    rank = next((rank for rank, code in enumerate(codes) if code in (2, 3)), None)
    if rank is not None:
        log = (logs / f"rank-{rank}.log").read_text(encoding="utf-8", errors="replace")
        lines = [line.removeprefix("error: ") for line in log.splitlines() if line.startswith("error: ")]
        message = lines[-1] if lines else f"training failed; see {logs}"
        raise NonFiniteLossError(message) if codes[rank] == 3 else TrainError(message)
    rank = next(rank for rank, code in enumerate(codes) if code)
    log = (logs / f"rank-{rank}.log").read_text(encoding="utf-8", errors="replace")
    tail = "\n".join(log.splitlines()[-25:])
    raise RuntimeError(
        f"training process {rank} ended with exit code {codes[rank]}; logs in {logs}. Its last lines:\n{tail}"
    )


class _Follower:
    """Reads the records that are appended to a JSON Lines file from a moment on."""

    def __init__(self, path: Path, since: float) -> None:
        self.path, self.since, self.position, self.rest = path, since, 0, ""
        self.inode: int | None = None

    def new_records(self) -> list[dict[str, Any]]:
        """Return the complete new lines; a run that resumes replaces the file, old records included."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self.inode:
                self.inode, self.position, self.rest = inode, 0, ""
            file.seek(self.position)
            text = self.rest + file.read()
            self.position = file.tell()
        *lines, self.rest = text.split("\n")
        records = [json.loads(line) for line in lines if line.strip()]
        return [record for record in records if record.get("time", 0) >= self.since]

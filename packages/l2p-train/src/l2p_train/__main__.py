"""`python -m l2p_train CONFIG.toml|json`: one process of a training run, under any launcher.

Exit codes: 0 done, 1 bug, 2 a mistake in settings or input, 3 the loss became non-finite, 130/143
interrupted after a checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from l2p_run.command import Parser, number, out, run_command
from l2p_run.places import is_address


def main(arguments: list[str] | None = None) -> int:
    """Train (or, with --dry-run, print the estimate) and return the exit code."""
    # The trainer stops at signals itself, after a checkpoint; before it listens, `_stop_at_once` does.
    return run_command(lambda: _run(_parser().parse_args(arguments)), own_signals=True)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m l2p_train",
        description="Train an L2P model; run again to resume.",
        package="l2p-train",
    )
    add = parser.add_argument
    add("config", help="a .toml or .json file with the fields of TrainConfig (or a [train] table)")
    add("--dry-run", action="store_true", help="print what would train and its memory; write nothing")
    add("--processes", type=number(int, ge=1), default=1, help="GPUs that --dry-run assumes")
    # The deepspeed launcher gives it to every script; LOCAL_RANK says the same.
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace) -> int:
    from l2p_train.config import load_config

    config = load_config(options.config)
    if options.dry_run:
        from l2p_train.data.shards import check_corpus
        from l2p_train.memory import estimate

        if is_address(config.corpus) or Path(config.corpus).is_dir():  # else it is planned without one
            check_corpus(config.corpus)
        out(estimate(config, options.processes).text())
        return 0
    _stop_with_parent()  # before the imports, which take long enough to be killed in
    from l2p_train.trainer import train

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("l2p_train").setLevel(logging.INFO)
    train(config, on_event=_print_event)
    return 0


def _print_event(record: Mapping[str, Any]) -> None:
    """Print a record of metrics.jsonl as one line."""
    if record["event"] == "step":
        print(
            f"step {record['step']}/{record['steps']}  loss {record['loss']:.5f}  "
            f"rate {record['learning_rate']:.2e}  {record['images_per_second']:.1f} images/s  "
            f"{timedelta(seconds=round(record['eta_seconds']))} left  {record['memory_mb']:.0f} MB",
            flush=True,
        )
        return
    details = {key: value for key, value in record.items() if key not in ("event", "time")}
    print(record["event"], *(f"{key}={value}" for key, value in details.items()), flush=True)


def _stop_with_parent() -> None:
    """Stop this process, with a checkpoint, when the launcher that started it is gone (it was killed)."""
    parent = int(os.environ.get("L2P_TRAIN_PARENT", "0"))
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _stop_at_once() -> None:
    """Until `train` listens to signals itself there is nothing to save: they end this process.

    The launcher starts us with both blocked. Imports take seconds, and Python's own handlers would end them
    with a traceback and another exit code.
    """

    def stop(received: int, _frame: Any) -> None:
        print("interrupted; run again to go on", file=sys.stderr, flush=True)
        os._exit(128 + received)

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def run_process() -> NoReturn:
    """Be the process: train as the command line says, and end."""
    _stop_at_once()
    # A clean interpreter exit joins gloo's threads, which can hang once a peer is gone.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_process()

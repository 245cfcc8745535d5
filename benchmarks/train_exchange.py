"""What it costs two processes to train together on two CPU cores: the exchange of gradients and updates.

    uv run python benchmarks/train_exchange.py [--processes 2 --batch-size 32 --rounds 6]

The miniature's size, Muon, ZeRO 0. The same processes take turns at three kinds of step: "alone", as
separate runs of batch-size / processes would (no exchange, each orthogonalises every matrix); "gloo",
DeepSpeed's all-reduce through the loopback network and Muon's broadcasts; "shared memory", as the trainer
does it. A second set of processes runs with an allocator that gives memory back, as it was before. Beside
other work on the machine only the ratios mean something. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

KINDS = ("alone", "gloo", "shared memory")
STEPS = 2  # of one turn


def work(folder: Path, batch_size: int, rounds: int) -> dict[str, Any]:
    """One of the processes: take turns, and return what a step takes."""
    from l2p_train import TrainConfig
    from l2p_train.data.batches import prefetched
    from l2p_train.trainer import Session
    from l2p_train.zero.engine import attention_for_device, distributed

    with distributed() as (rank, processes), attention_for_device():
        config = TrainConfig(
            model=folder / "model",
            corpus=folder / "corpus",
            output=folder / f"run-{os.environ['MASTER_PORT']}",
            batch_size=batch_size,
            zero_stage=0,
            optimizer="muon",
            trainable=1,
            ema_decay=0.99,
            tensorboard=False,
        )
        session = Session(config, rank, processes)
        stream = prefetched(session.maker, range(10**6), config.loader_workers)
        use = switch(session)
        taken: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
        for turn in range(rounds + 1):
            for kind in KINDS:
                use(kind)
                for _ in range(STEPS):
                    number, batches = next(stream)
                    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
                    session.train_step(number, batches)
                    ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
                    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
                    taken[kind] += [(ended - started, user, system)] if turn else []
    names = ("seconds", "user_seconds", "system_seconds")
    return {
        kind: {name: round(median(step[index] for step in steps), 4) for index, name in enumerate(names)}
        for kind, steps in taken.items()
    }


def switch(session: Any) -> Callable[[str], None]:
    """Return a function that sets how a session's steps exchange what they have."""
    import torch
    from l2p_train.zero import muon

    engine, shared, summary = session.engine, session.shared_memory, session._summary
    assert shared is not None
    checker, orthogonalise_all = engine.optimizer.overflow_checker, muon._orthogonalise_all

    def use(kind: str) -> None:
        torch.distributed.barrier()
        session.shared_memory = engine.optimizer.optimizer.shared_memory = (
            shared if kind == "shared memory" else None
        )
        engine.enable_backward_allreduce = kind == "gloo"
        checker.deepspeed = None if kind == "alone" else engine
        session._summary = (lambda *_: None) if kind == "alone" else summary
        muon._orthogonalise_all = (
            (lambda matrices, _: [muon.orthogonalise(matrix) for matrix in matrices])
            if kind == "alone"
            else orthogonalise_all
        )

    return use


def launch(folder: Path, options: argparse.Namespace, kept: bool) -> dict[str, Any]:
    """Start the processes; what the first one measured."""
    from l2p_train.machine.processes import KEPT_MEMORY, process_environments

    command = [sys.executable, __file__, "--work", str(folder), "--batch-size", str(options.batch_size)]
    command += ["--rounds", str(options.rounds)]
    environments = process_environments(options.processes, on_gpus=False)
    if not kept:
        environments = [
            {key: value for key, value in one.items() if key not in KEPT_MEMORY} for one in environments
        ]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for environment in environments
    ]
    told = [process.communicate() for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(
            next(error for process, (_, error) in zip(running, told, strict=True) if process.returncode)
        )
    found: dict[str, Any] = json.loads(told[0][0].splitlines()[-1])
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.work, options.batch_size, options.rounds)))
        return 0
    from train_inputs import write_inputs

    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name), dim=192, blocks=6, size=64)
        before, now = launch(Path(name), options, kept=False), launch(Path(name), options, kept=True)
    result = {
        "memory given back": before,
        "memory kept": now,
        "images_a_second": {
            "before": round(options.batch_size / before["gloo"]["seconds"], 1),
            "now": round(options.batch_size / now["shared memory"]["seconds"], 1),
            "separate runs": round(options.batch_size / now["alone"]["seconds"], 1),
        },
        "step_now_over_before": round(now["shared memory"]["seconds"] / before["gloo"]["seconds"], 3),
        "shared_memory_over_gloo": round(now["shared memory"]["seconds"] / now["gloo"]["seconds"], 3),
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a training step costs: our loop over a bare PyTorch loop of the same maths, and what freezing saves.

    python benchmarks/train_step.py MODEL CORPUS [--batch-size 16] [--trainable 1] [--repeats 8]

MODEL is a directory of `l2p_arch.convert`, CORPUS one of Parquet shards. One process and one thread; the
variants take turns and the CPU seconds of each are compared by their minimum, so that other load
matters little. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from l2p_train import TrainConfig
from l2p_train.conditioning import ConditioningCache
from l2p_train.corpus import Corpus
from l2p_train.data import Batch, BatchMaker, prefetched
from l2p_train.engine import attention_for_device, distributed, load_model
from l2p_train.freeze import plan_for_model
from l2p_train.objective import l2p_loss
from l2p_train.trainer import Session


def bare_loop(config: TrainConfig, cache: ConditioningCache) -> Callable[[], None]:
    """Return one step of AdamW on eq. 5 with float32 masters, without engine, loader or reports."""
    model = load_model(config)
    trainable = set(plan_for_model(model, trainable=config.trainable).trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    model.detailer_head.to(memory_format=torch.channels_last)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = [weight.detach().float().clone() for weight in weights]
    optimizer = torch.optim.AdamW(
        masters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    (batch,) = BatchMaker(config, Corpus(config.corpus), cache, patch_size=model.patch_size).batches(0)

    def step() -> None:
        loss = l2p_loss(model, batch.x_0, batch.noise, batch.sigma, batch.conditioning)
        loss.mean().backward()
        for weight, master in zip(weights, masters, strict=True):
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, config.gradient_clipping)
        optimizer.step()
        with torch.no_grad():
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)

    return step


def our_loop(session: Session, config: TrainConfig) -> Callable[[], None]:
    """Return one step of the trainer, its loader included."""
    stream: Iterator[tuple[int, list[Batch]]] = prefetched(session.maker, range(10**6), config.loader_workers)

    def step() -> None:
        number, batches = next(stream)
        session.train_step(number, batches)

    return step


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--trainable", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        "model": options.model,
        "corpus": options.corpus,
        "batch_size": options.batch_size,
        "zero_stage": 0,
        "tensorboard": False,
    }
    with tempfile.TemporaryDirectory() as folder, distributed(), attention_for_device():
        partly = TrainConfig(output=Path(folder) / "partly", trainable=options.trainable, **settings)
        fully = TrainConfig(output=Path(folder) / "fully", trainable="full", **settings)
        sessions = {"ours": Session(partly), "everything trains": Session(fully)}
        steps = {name: our_loop(sessions[name], sessions[name].config) for name in sessions}
        steps["bare loop"] = bare_loop(partly, sessions["ours"].conditioning)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.repeats + 1):
            for name, step in steps.items():
                started = time.process_time()
                step()
                seconds[name].append(time.process_time() - started)
        best = {name: min(values[1:]) for name, values in seconds.items()}
    result = {
        "cpu_seconds_per_step": {name: round(value, 4) for name, value in best.items()},
        "ours_over_bare_loop": round(best["ours"] / best["bare loop"], 3),
        "partly_frozen_over_everything": round(best["ours"] / best["everything trains"], 3),
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

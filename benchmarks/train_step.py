"""What a training step costs: our loop over a bare PyTorch loop of the same maths, and what freezing saves.

    uv run python benchmarks/train_step.py [--blocks 30] [--trainable 5] [--size 128] [--batch-size 32]

An untrained model of 30 blocks on one thread; a step takes seconds. The variants take turns, and the CPU
seconds of each are compared by their minimum, so that other load matters little. All variants draw
their own noise: it is part of eq. 5. The prediction is the FLOP count of `l2p_train.flops`. Prints one
JSON object.
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
from l2p_train.data.batches import Batch, BatchMaker, prefetched
from l2p_train.data.conditioning import ConditioningCache
from l2p_train.data.corpus import Corpus
from l2p_train.flops import training_flops
from l2p_train.freeze import plan_for_model
from l2p_train.memory import meta_model
from l2p_train.objective import l2p_loss
from l2p_train.trainer import Session
from l2p_train.zero.engine import attention_for_device, distributed, load_model
from train_inputs import write_inputs


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
        noise = torch.randn_like(batch.x_0)
        loss = l2p_loss(model, batch.x_0, noise, batch.sigma, batch.conditioning)
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


def predicted_ratio(partly: TrainConfig, fully: TrainConfig, session: Session) -> float:
    """Return the FLOPs of a partly frozen step over those of one where everything trains."""
    size = session.sample_plan.size
    conditioning = session.conditioning[session.corpus.rows[0].prompt]
    steps = []
    for config in (partly, fully):
        plan = plan_for_model(meta_model(config)[0], trainable=config.trainable)
        steps.append(training_flops(config, plan, size, conditioning).step)
    return steps[0] / steps[1]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--trainable", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, distributed(), attention_for_device():
        folder = Path(name)
        model, corpus = write_inputs(folder, dim=options.dim, blocks=options.blocks, size=options.size)
        settings: dict[str, Any] = {
            "model": model,
            "corpus": corpus,
            "batch_size": options.batch_size,
            "zero_stage": options.zero_stage,
            "tensorboard": False,
        }
        partly = TrainConfig(output=folder / "partly", trainable=options.trainable, **settings)
        fully = TrainConfig(output=folder / "fully", trainable="full", **settings)
        sessions = {"ours": Session(partly), "everything trains": Session(fully)}
        steps = {name: our_loop(sessions[name], sessions[name].config) for name in sessions}
        steps["bare loop"] = bare_loop(partly, sessions["ours"].conditioning)
        prediction = predicted_ratio(partly, fully, sessions["ours"])
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.repeats + 1):
            for name, step in steps.items():
                started = time.process_time()
                step()
                seconds[name].append(time.process_time() - started)
        best = {name: min(values[1:]) for name, values in seconds.items()}
    measured = best["ours"] / best["everything trains"]
    result = {
        "cpu_seconds_per_step": {name: round(value, 4) for name, value in best.items()},
        "all_seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "ours_over_bare_loop": round(best["ours"] / best["bare loop"], 3),
        "partly_frozen_over_everything": round(measured, 3),
        "predicted_by_flops": round(prediction, 3),
        "measured_over_predicted": round(measured / prediction, 3),
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What trains in an aligned model, and what it costs: full, the outer blocks, the head alone, adapters.

    uv run python benchmarks/train_aligned.py [--model MODEL] [--repeats 4]

The shipped pixel miniature (or MODEL) takes steps of the trainer on noise images; the ways take turns, one
thread each, and the CPU seconds of each are compared by their minimum, so that other load matters little.
Beside them stand what `--dry-run` plans, for the miniature and for a model of Z-Image's size at 1024 px,
which is only counted. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from l2p_mini.paths import PIXEL_MODEL
from l2p_train import TrainConfig
from l2p_train.memory import estimate
from l2p_train.trainer import Session
from l2p_train.zero.engine import attention_for_device, distributed
from train_inputs import write_corpus
from train_step import our_loop

WAYS: dict[str, str | int] = {"full": "full", "ends": 1, "head-only": "head-only", "lora": "lora"}


def planned(config: TrainConfig, side: int) -> dict[str, float]:
    """Return GB of a plan."""
    needs = estimate(config, height=side, width=side)
    names = ("weights_gb", "gradients_gb", "optimizer_gb", "activations_gb", "total_gb")
    return {name: round(getattr(needs, name), 4) for name in names}


def write_large(model: Path, out: Path) -> None:
    """Write the config of an aligned model of Z-Image's size, for counting."""
    from diffusers import ZImageTransformer2DModel

    config = json.loads((model / "transformer" / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        published = ZImageTransformer2DModel().config
    config["trunk_config"] = {key: value for key, value in published.items() if not key.startswith("_")}
    config["head_channels"] = [64, 128, 256, 512]
    (out / "transformer").mkdir(parents=True)
    (out / "transformer" / "config.json").write_text(json.dumps(config), encoding="utf-8")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=PIXEL_MODEL)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, distributed(), attention_for_device():
        folder = Path(name)
        corpus = write_corpus(folder / "corpus", size=options.size)
        write_large(options.model, folder / "large")
        steps: dict[str, Callable[[], None]] = {}
        for way, trainable in WAYS.items():
            shared: dict[str, Any] = {"corpus": corpus, "tensorboard": False, "trainable": trainable}
            config = TrainConfig(
                model=options.model,
                output=folder / way,
                batch_size=options.batch_size,
                zero_stage=0,
                max_sequence_length=32,
                **shared,
            )
            session = Session(config)
            steps[way] = our_loop(session, config)
            large = TrainConfig(model=folder / "large", output=folder / "x", batch_size=1, **shared)
            if trainable == 1:
                large = TrainConfig(
                    model=folder / "large", output=folder / "x", batch_size=1, **shared | {"trainable": 5}
                )
            result[way] = {
                "trainable_parameters": session.plan.trainable_count,
                "plan": planned(config, options.size),
                "plan_at_full_size": planned(large, 1024),
            }
        seconds: dict[str, list[float]] = {way: [] for way in steps}
        for _ in range(options.repeats + 1):
            for way, step in steps.items():
                started = time.process_time()
                step()
                seconds[way].append(time.process_time() - started)
    for way, values in seconds.items():
        result[way]["cpu_seconds_per_step"] = round(min(values[1:]), 4)
        result[way]["over_full"] = round(min(values[1:]) / min(seconds["full"][1:]), 3)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

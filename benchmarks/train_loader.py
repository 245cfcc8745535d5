"""How long the device waits for data: the loader's share of a training's time, and what one thread makes.

    uv run python benchmarks/train_loader.py [--blocks 12] [--size 256] [--batch-size 8] [--steps 8]

Trains an untrained model for some steps with no image cache, so that every image is read, decoded and
resized anew, and reports `loader_share` of the run's own log without its first interval. Beside it: images of
1024 px that one thread makes ready in a second (PNG to float, and its noise), to be held against the
images/s of a device. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from l2p_train import TrainConfig, train
from l2p_train.data.batches import BatchMaker
from l2p_train.data.corpus import Corpus
from train_inputs import write_inputs


class NoText(dict[str, Any]):
    """No conditioning: the loader's work is images and noise."""

    def __missing__(self, prompt: str) -> dict[str, torch.Tensor]:
        return {}


def images_per_second(corpus: Path, seconds: float = 3.0) -> float:
    """Return how many images of 1024 px one thread makes ready."""
    config = TrainConfig(
        model=Path("m"), corpus=corpus, output=Path("o"), batch_size=1, resolution=1024, image_cache_mb=0
    )
    cache: Any = NoText()
    maker = BatchMaker(config, Corpus(corpus, 0), cache, patch_size=16)
    maker.batches(0)
    started, count = time.thread_time(), 0
    while time.thread_time() - started < seconds:
        maker.batches(count)
        count += 1
    return count / (time.thread_time() - started)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shares: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, corpus = write_inputs(folder, dim=options.dim, blocks=options.blocks, size=options.size)
        for workers in (0, options.workers):
            steps: list[dict[str, Any]] = []
            config = TrainConfig(
                model=model,
                corpus=corpus,
                output=folder / f"run-{workers}",
                steps=options.steps,
                batch_size=options.batch_size,
                zero_stage=0,
                log_every=1,
                checkpoint_every=0,
                sample_every=0,
                tensorboard=False,
                image_cache_mb=0,
                loader_workers=workers,
            )
            train(config, lambda event, found=steps: found.append(dict(event)))  # type: ignore[misc]
            later = [event for event in steps if event["event"] == "step"][1:]
            seconds = sum(event["seconds_per_step"] for event in later)
            waited = sum(event["loader_share"] * event["seconds_per_step"] for event in later)
            shares[workers] = waited / seconds
        _, large = write_inputs(folder / "large", dim=64, blocks=2, size=1024, images=8)
        rate = images_per_second(large)
    result = {
        "seconds_per_step": round(seconds / len(later), 3),
        "loader_share_without_threads": round(shares[0], 5),
        f"loader_share_with_{options.workers}_threads": round(shares[options.workers], 5),
        "images_of_1024_px_per_second_and_thread": round(rate, 1),
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Images a second of `l2p-generate serve --api` with dynamic batching against one at a time, in one process,
by turns: the queue that the server has, the same requests, the same model.

    uv run python benchmarks/generate_batching.py [--model PATH] [--requests 32] [--batch 8] [--turns 3]

Prints JSON; `ratio` is that of the medians.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

from l2p_arch.sampling.painter import sampling_defaults
from l2p_generate.model import choose_model
from l2p_serve import BatchQueue, Painter, Recipe, load_painter

PROMPTS = ("two red circles on a gray background", "a blue ring", "a white cross", "three green squares")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    model = choose_model(options.model)
    painter = load_painter(model, dtype=options.dtype)
    sampling = sampling_defaults(model.directory)
    if options.steps:
        sampling = replace(sampling, num_inference_steps=options.steps)
    recipes = [
        Recipe(prompt=PROMPTS[number % len(PROMPTS)], seed=number, sampling=sampling)
        for number in range(options.requests)
    ]
    measured(painter, recipes[: options.batch], options.batch)  # warm
    speeds: dict[int, list[float]] = {1: [], options.batch: []}
    for _ in range(options.turns):
        for batch, found in speeds.items():
            found.append(measured(painter, recipes, batch))
    alone, together = (statistics.median(found) for found in speeds.values())
    result = {
        "model": model.name,
        "device": painter.device,
        "dtype": painter.dtype,
        "size": [sampling.width, sampling.height],
        "steps": sampling.num_inference_steps,
        "requests": options.requests,
        "batch": options.batch,
        "images_per_second_alone": alone,
        "images_per_second_batched": together,
        "ratio": together / alone,
        "turns": speeds,
    }
    print(json.dumps(result, indent=1))


def measured(painter: Painter, recipes: list[Recipe], batch: int) -> float:
    """Images a second of wall time, every recipe a request of its own, all asked for at once."""
    queue = BatchQueue(painter, waiting=len(recipes), batch=batch)
    started = time.perf_counter()
    jobs = [queue.submit([recipe]) for recipe in recipes]
    for job in jobs:
        job.done.result()
    seconds = time.perf_counter() - started
    queue.stop()
    return len(recipes) / seconds


if __name__ == "__main__":
    main()

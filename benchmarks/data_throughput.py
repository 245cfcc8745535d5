"""Does the synthesis cost anything beside the pipeline? Images per second of one worker against a bare loop.

    uv run python benchmarks/data_throughput.py [--model DIRECTORY] [--width 1024 --steps 9 --batch-size 8]

The bare loop calls the same pipeline with the same batches and throws the images away; the synthesis also
checks, encodes, hashes and writes them. Both are timed without loading the model, in turns, by the clock and
by seconds of CPU time, and compared by their best turns, so that other load matters little.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Times = dict[str, list[tuple[float, float]]]
"""Seconds by the clock and of CPU time of each turn, by what was timed."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="default: the untrained miniature")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4, help="per turn: one shard")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def time_turns(options: argparse.Namespace, model: Path, folder: Path) -> Times:
    """Paint the same shards by the bare loop and by the synthesis, in turns; the first turn warms up."""
    from l2p_data import SynthesisConfig, prompt_records
    from l2p_data.synthesis.synthesize import plan_shards
    from l2p_data.synthesis.worker import WorkerSettings, batches, load_generator, make_shard

    size = options.batch_size
    settings = WorkerSettings(
        model=str(model),
        corpus=str(folder / "corpus"),
        source_model="benchmark",
        batch_size=size,
        threads=options.threads,
        dtype="auto",
        image_format="png",
        max_attempts=2,
        device=options.device,
        pipeline_kwargs={"num_inference_steps": options.steps, "guidance_scale": 0.0},
    )
    plan = SynthesisConfig(
        model=model,
        output=folder,
        width=options.width,
        height=options.width,
        seeds_per_prompt=1,
        rows_per_shard=size * options.batches,
    )
    count = size * options.batches * options.turns
    shards = plan_shards(prompt_records([f"a red circle number {i}" for i in range(count)]), plan)
    generate = load_generator(settings)

    def bare_loop(rows: list[dict[str, Any]], index: int) -> None:
        for batch in batches(rows, size):
            prompts, seeds = [row["prompt"] for row in batch], [row["seed"] for row in batch]
            generate(prompts, seeds, (options.width, options.width))

    def synthesis(rows: list[dict[str, Any]], index: int) -> None:
        make_shard(index, rows, generate, settings)

    turns: Times = {"bare loop": [], "synthesis": []}
    pair = [("bare loop", bare_loop), ("synthesis", synthesis)]
    for index, rows in enumerate([shards[0], *shards]):
        for name, work in pair if index % 2 else pair[::-1]:
            start, cpu = time.perf_counter(), time.process_time()
            work(rows, index)
            turns[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return turns


def main() -> int:
    options = parse_arguments()
    from l2p_mini.architecture import write_untrained_source

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or write_untrained_source(folder / "model", seed=0)
        turns = time_turns(options, model, folder)
    images = options.batch_size * options.batches
    for which, clock in enumerate(("by the clock", "of CPU time")):
        # the quickest of the turns after the first, which warms up: what other load disturbed is left out
        best = {name: min(turn[which] for turn in turns[name][1:]) for name in turns}
        rates = ", ".join(f"{name} {images / seconds:.2f} images/s" for name, seconds in best.items())
        print(f"{clock}: {rates}, ratio {best['bare loop'] / best['synthesis']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a page shows of an evaluation of a source and its L2P model, from the evaluation's results.json."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from l2p_run.sizes import Size

from l2p_eval.metrics.frechet import FrechetResult
from l2p_eval.report.page import Pair, Picture


def pairs_of(results: Mapping[str, Any], folder: Path) -> Iterator[Pair]:
    """Yield every evaluated prompt and sample, source and L2P side by side.

    Args:
        folder: holds the images, in `source/` and `l2p/`.
    """
    per_prompt, seed = results["images_per_prompt"], results["seed"]
    for source, l2p in zip(results["source"]["images"], results["l2p"]["images"], strict=True):
        pictures = [
            Picture(path=folder / name / row["path"], correct=row["correct"], reason=row["reason"])
            for name, row in (("source", source), ("l2p", l2p))
        ]
        yield Pair(
            prompt=l2p["prompt"],
            tag=l2p["tag"],
            seed=seed + l2p["prompt_index"] * per_prompt + l2p["sample"],
            source=pictures[0],
            l2p=pictures[1],
        )


def first_per_tag(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return `count` pairs of each tag: the first different prompts, then further seeds of them."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.tag].append(pair)
    chosen = []
    for group in groups.values():
        first = {pair.prompt: pair for pair in reversed(group)}
        fresh = [pair for pair in group if first[pair.prompt] is pair]
        again = [pair for pair in group if first[pair.prompt] is not pair]
        chosen += [*fresh, *again][:count]
    return chosen


def failures_of(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """L2P's failures in turn over the tags; first those that the source got right."""
    failed: dict[str, list[Pair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: not pair.source.correct):
        if not pair.l2p.correct:
            failed[pair.tag].append(pair)
    in_turn = (pair for row in zip_longest(*failed.values()) for pair in row if pair)
    return [pair for pair, _ in zip(in_turn, range(count), strict=False)]


def frechet_of(row: Mapping[str, Any]) -> FrechetResult:
    """Return a Frechet distance as `FrechetResult.to_row` wrote it."""
    names = {field.name for field in fields(FrechetResult)}
    return FrechetResult(**{key: value for key, value in row.items() if key in names})


def sampling_in_words(options: Mapping[str, Any]) -> str:
    """Return how a model was sampled: "steps 16, guidance 2.5, 64x64 px, bfloat16"."""
    names = {"num_inference_steps": "steps", "guidance_scale": "guidance", "noise_shift": "noise shift"}
    parts = [f"{names[key]} {options[key]}" for key in names if options.get(key) is not None]
    if "width" in options:
        parts.append(f"{Size(width=options['width'], height=options['height'])} px")
    return ", ".join([*parts, str(options["dtype"])])

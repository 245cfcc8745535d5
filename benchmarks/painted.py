"""What the benchmarks of pictures share: models that paint into folders, and where results go.

A folder of pictures resumes, so every one of these commands does. Sets of seeds are numbered: set k paints
with the seeds from k * 100,000 on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from l2p_arch.sampling.painter import Painter
from l2p_eval.geneval import GenEvalPrompt, read_metadata
from l2p_eval.painting import Model, Painting, Pictures, model_settings, paint
from l2p_mini.paths import EVALUATION_METADATA
from l2p_run.command import out
from l2p_run.devices import resolve_dtype
from l2p_run.places import put, write_json
from l2p_run.provenance import collect

SOURCE = {"num_inference_steps": 10, "guidance_scale": 2.0, "max_sequence_length": 32}
PIXEL = {"num_inference_steps": 10, "guidance_scale": 1.5, "noise_shift": 3.0, "max_sequence_length": 32}
PACKAGES = ("l2p-arch", "l2p-eval", "l2p-mini", "torch", "diffusers", "transformers")
_SEEDS_OF_A_SET = 100_000


def model_of(directory: Path, sampling: dict[str, Any], size: int = 64) -> Model:
    """Return a model directory that paints squares of `size` px in this machine's own precision."""
    dtype, options = resolve_dtype("auto"), {"height": size, "width": size, **sampling}
    return Model(
        load=Painter(directory=directory, dtype=dtype, options=options),
        settings=model_settings(directory, dtype, options),
    )


def pictures_of(
    name: str,
    model: Model,
    prompts: Sequence[str],
    folder: Path,
    *,
    number: int,
    each: int = 1,
    batch: int = 24,
) -> Pictures:
    """Paint `each` pictures of every prompt with the seeds of set `number`; those that are there are kept."""
    how = Painting(images_per_prompt=each, seed=number * _SEEDS_OF_A_SET, batch_size=batch, workers=0)
    return paint(
        name,
        model,
        prompts,
        folder / f"set-{number}",
        how,
        lambda done, total, what: print(f"{what} {done}/{total}", file=sys.stderr),
    )


def some_prompts(per_task: int, *, with_background: bool = False) -> list[GenEvalPrompt]:
    """Return different prompts of the evaluation, up to `per_task` of each task."""
    every = {row.prompt: row for row in read_metadata(EVALUATION_METADATA)}
    rows = [row for row in every.values() if row.prompt.endswith(" background") or not with_background]
    tags = dict.fromkeys(row.tag for row in rows)
    return [row for tag in tags for row in [one for one in rows if one.tag == tag][:per_task]]


def spread(values: Sequence[float], of: str = "sets") -> dict[str, Any]:
    """Return the values of several sets, or of what `of` names, their mean and sample deviation."""
    deviation = round(stdev(values), 4) if len(values) > 1 else None
    return {of: [round(v, 4) for v in values], "mean": round(fmean(values), 4), "deviation": deviation}


def verdict(true: Sequence[bool]) -> str:
    """Return, as for ablations: what is true of every set holds, what is false of every one does not."""
    if len(true) < 2 or len(set(true)) > 1:
        return "undecided"
    return "holds" if true[0] else "does not hold"


def parser_of(about: str, *, sets: int) -> argparse.ArgumentParser:
    """Return the options that all of these commands have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/claims"), help="default: %(default)s")
    parser.add_argument("--sets", type=int, default=sets, help="sets of seeds (default: %(default)s)")
    parser.add_argument("--publish", type=Path, metavar="DIR", help="copy the JSON and PNG there")
    return parser


def finish(name: str, results: dict[str, Any], options: argparse.Namespace) -> None:
    """Write NAME.json beside NAME.png, publish both where asked, and print the results."""
    import json

    results["provenance"] = collect(["python", *sys.argv], PACKAGES)
    write_json(options.output / f"{name}.json", results, ensure_ascii=True, allow_nan=False)
    if options.publish:
        for suffix in ("json", "png"):
            if (options.output / f"{name}.{suffix}").is_file():
                put(options.output / f"{name}.{suffix}", options.publish / f"{name}.{suffix}")
    out(json.dumps({key: value for key, value in results.items() if key != "provenance"}, indent=1))

"""`l2p-evaluate efficiency` (Fig. 4): source with VAE against L2P, per step and per image.

Measured on the device at hand for models that are there; counted on meta tensors at Z-Image's full size, for
which no weights and no memory are needed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2p_arch.full_size import CAPTION_TOKENS, FAMILIES, HEADS, forwards_on_meta
from l2p_eval.errors import EvalError
from l2p_eval.metric_options import SIDE
from l2p_run import places
from l2p_run.command import number, out
from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.progress import say

from l2p_evaluate.options import DTYPES, PACKAGES


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="an L2P model or run, to measure")
    add("--source", type=Path, metavar="DIR", help="its latent source, to measure")
    add("--count", choices=FAMILIES, help="count a family at its full size, without weights")
    sides = "sides; default 64 128 256, or 1024 2048 4096 8192"
    add("--sizes", type=SIDE, nargs="+", metavar="PX", help=sides)
    steps = "sampling steps of a measured image, from 2, because a step is timed by difference (default 4)"
    add("--steps", type=number(int, ge=2, le=10_000), default=4, help=steps)
    add("--repeats", type=number(int, ge=1, le=10_000), default=5)
    add("--dtype", default="auto", choices=DTYPES)
    add("-o", "--output", type=Path, default=Path("efficiency"), metavar="DIR", help="default: efficiency/")
    add("--json", action="store_true", help="print efficiency.json instead of the table")


def run(options: argparse.Namespace, command: Sequence[str]) -> int:
    """Write efficiency.json, .md and .png; prints the table."""
    from l2p_eval.efficiency import count
    from l2p_eval.efficiency.comparison import counted, table, write_comparison
    from l2p_run.provenance import collect

    if bool(options.model) != bool(options.source):
        raise EvalError("measuring compares two models; give --model and --source")
    if not options.model and not options.count:
        raise EvalError("nothing to do; give --model and --source to measure, or --count z-image")
    places.make_folder(options.output, "choose another --output")
    rows = []
    sizes = options.sizes or ([64, 128, 256] if options.model else [1024, 2048, 4096, 8192])
    if options.model:
        for kind, path in (("source", options.source), ("L2P", options.model)):
            rows += _measured(kind, path, sizes, options)
    else:
        for size in sizes:
            say(f"counting {size} px")
            counts = {
                model: {part: count(*forward) for part, forward in parts.items()}
                for model, parts in forwards_on_meta(options.count, size).items()
            }
            rows += counted(size, counts, options.steps)
    results = write_comparison(
        rows,
        options.output,
        steps=options.steps,
        definition=_definition(options),
        provenance=collect(command, PACKAGES),
    )
    out(json.dumps(results, indent=1) if options.json else table(rows, options.steps))
    return 0


def _definition(options: argparse.Namespace) -> dict[str, Any]:
    """Return what defines the numbers beside their rows' own details."""
    from l2p_eval.efficiency.comparison import PROMPT

    if options.model:
        return {
            "device": choose_device(),
            "prompt": PROMPT,
            "guidance_scale": 0.0,
            "repeats": options.repeats,
            "step": f"difference of {options.steps} steps and 1, medians, over {options.steps - 1}",
        }
    return {
        "device": "meta",
        "family": options.count,
        "dtype": "bfloat16",
        "caption tokens": CAPTION_TOKENS,
        "heads": {str(size): HEADS[size] for size in HEADS},
    }


def _measured(kind: str, path: Path, sizes: Sequence[int], options: argparse.Namespace) -> list[Any]:
    from l2p_arch.sampling.painter import find_model, load_pipeline
    from l2p_eval.efficiency.comparison import measured
    from l2p_eval.painting import model_sha256

    found, device = find_model(path), choose_device()
    if found.pixel != (kind == "L2P"):
        what = "pixel-space" if found.pixel else "latent"
        raise EvalError(f"{path} is a {what} model; --source is the latent one")
    dtype = resolve_dtype(options.dtype)
    details = {"weights_sha256": model_sha256(found.directory), "dtype": dtype}
    pipeline = load_pipeline(found.directory, dtype=dtype, device=device)
    how = {"device": device, "steps": options.steps, "repeats": options.repeats, "details": details}
    return [measured(kind, pipeline, size, **how) for size in sizes]

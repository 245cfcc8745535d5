"""`l2p-evaluate efficiency` (Fig. 4): source with VAE against L2P, per step and per image.

Measured on the device at hand for models that are there; counted on meta tensors at Z-Image's full size, for
which no weights and no memory are needed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from l2p_eval.efficiency import Timing, measure
from l2p_run.devices import resolve_dtype

from l2p_evaluate.arguments import positive
from l2p_evaluate.errors import EvaluateError
from l2p_evaluate.full_size import CAPTION_TOKENS, FAMILIES, HEADS, count_size
from l2p_evaluate.models import find_model, load_pipeline, weights_hash
from l2p_evaluate.provenance import collect_provenance
from l2p_evaluate.runner import make_folder
from l2p_evaluate.scorers import device

PAPER = {"step latency": 0.9767, "peak memory": 0.3881}
"""Sec. 3.4, at 4K: how much less than the source. The paper's, not measured here."""
_PROMPT = "a red circle left of a blue square on a gray background"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="an L2P model or run, to measure")
    add("--source", type=Path, metavar="DIR", help="its latent source, to measure")
    add("--count", choices=FAMILIES, help="count a family at its full size, without weights")
    add(
        "--sizes",
        type=positive,
        nargs="+",
        metavar="PX",
        help="sides; default 64 128 256, or 1024 2048 4096 8192",
    )
    add("--steps", type=positive, default=4, help="sampling steps of a measured image (default 4)")
    add("--repeats", type=positive, default=5)
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("-o", "--output", type=Path, default=Path("efficiency"), metavar="DIR", help="default: efficiency/")
    add("--json", action="store_true", help="print efficiency.json instead of the table")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model at one size. `unit` of `step` and `decode`: "s" measured, "TFLOP" counted."""

    size: int  # px a side
    model: str  # "source" or "L2P"
    unit: str
    step: float
    decode: float  # the source's VAE; 0 for L2P
    image: float  # all steps and the decoding
    memory_gb: float | None  # peak of everything; None where the device does not tell
    details: dict[str, Any]


def run(options: argparse.Namespace, command: Sequence[str]) -> int:
    """Writes efficiency.json, .md and .png; prints the table."""
    if options.steps < 2:
        raise EvaluateError(f"--steps {options.steps}: a step is timed by difference; use 2 or more")
    if bool(options.model) != bool(options.source):
        raise EvaluateError("measuring compares two models; give --model and --source")
    if not options.model and not options.count:
        raise EvaluateError("nothing to do; give --model and --source to measure, or --count z-image")
    make_folder(options.output)
    rows: list[Row] = []
    sizes = options.sizes or ([64, 128, 256] if options.model else [1024, 2048, 4096, 8192])
    if options.model:
        for kind, path in (("source", options.source), ("L2P", options.model)):
            rows += _measured(kind, path, sizes, options)
    else:
        for size in sizes:
            print(f"counting {size} px", file=sys.stderr, flush=True)
            rows += _counted(options.count, size, options.steps)
    results = {
        "measured": bool(options.model),
        "steps": options.steps,
        "definition": _definition(options),
        "rows": [vars(row) for row in rows],
        "paper": {"note": "the paper's own, at 4K, not measured here", "less than the source": PAPER},
        "provenance": collect_provenance(command),
    }
    (options.output / "efficiency.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = table(rows, options.steps)
    (options.output / "efficiency.md").write_text(text + "\n", encoding="utf-8")
    _chart(rows, options.output / "efficiency.png")
    print(json.dumps(results, indent=1) if options.json else text)
    return 0


def _definition(options: argparse.Namespace) -> dict[str, Any]:
    """What defines the numbers beside their rows' own details."""
    common = {
        "metric version": f"l2p-eval {version('l2p-eval')}",
        "batch": 1,
        "images": "square, of `size` px",
    }
    if options.model:
        return common | {
            "device": device(),
            "prompt": _PROMPT,
            "guidance_scale": 0.0,
            "repeats": options.repeats,
            "step": f"difference of {options.steps} steps and 1, medians, over {options.steps - 1}",
        }
    return common | {
        "device": "meta",
        "family": options.count,
        "dtype": "bfloat16",
        "caption tokens": CAPTION_TOKENS,
        "heads": {str(size): HEADS[size] for size in HEADS},
    }


def table(rows: Sequence[Row], steps: int) -> str:
    """Markdown, source and L2P of a size under each other, with what L2P saves."""
    unit = rows[0].unit
    lines = [
        f"| size | model | step ({unit}) | VAE decoder ({unit}) | {steps} steps and decoder ({unit}) |"
        " peak memory (GB) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    by_size: dict[int, dict[str, Row]] = {}
    for row in rows:
        by_size.setdefault(row.size, {})[row.model] = row
    for size, pair in by_size.items():
        for row in pair.values():
            memory = "-" if row.memory_gb is None else f"{row.memory_gb:.2f}"
            lines.append(
                f"| {size} | {row.model} | {row.step:.4g} | {row.decode:.4g} | {row.image:.4g} | {memory} |"
            )
        if len(pair) == 2:
            lines.append(f"| {size} | *less than the source* | {' | '.join(_savings(pair))} |")
    lines += [
        "",
        "The paper, at 4K on its GPU: 97.67 % less per step, 38.81 % less memory (not measured here).",
    ]
    return "\n".join(lines)


def _savings(pair: dict[str, Row]) -> list[str]:
    source, l2p = pair["source"], pair["L2P"]
    values = [(source.step, l2p.step), None, (source.image, l2p.image), (source.memory_gb, l2p.memory_gb)]
    return [
        "" if v is None or not v[0] or v[1] is None else f"{100 * (1 - v[1] / v[0]):.1f} %" for v in values
    ]


def _counted(family: str, size: int, steps: int) -> list[Row]:
    rows = []
    for model, counts in count_size(family, size).items():
        transformer, decoder = counts["transformer"], counts.get("decoder")
        weights = sum(count.weight_bytes for count in counts.values())
        activations = max(count.peak_activation_bytes for count in counts.values())
        step = transformer.flops / 1e12
        decode = decoder.flops / 1e12 if decoder else 0.0
        rows.append(
            Row(
                size=size,
                model=model,
                unit="TFLOP",
                step=step,
                decode=decode,
                image=steps * step + decode,
                memory_gb=(weights + activations) / 1e9,
                details={name: count.to_row() for name, count in counts.items()},
            )
        )
    return rows


def _measured(kind: str, path: Path, sizes: Sequence[int], options: argparse.Namespace) -> list[Row]:
    """Times a pipeline: a step by the difference of two lengths, the decoder alone, and the whole image."""
    directory, pixel = find_model(path)
    if pixel != (kind == "L2P"):
        raise EvaluateError(
            f"{path} is a {'pixel-space' if pixel else 'latent'} model; --source is the latent one"
        )
    dtype = resolve_dtype(options.dtype)
    pipeline = load_pipeline(directory, pixel, dtype=dtype, device=device())
    digest = weights_hash(directory)  # reads the whole model
    rows = []
    for size in sizes:
        timings, decode = _timings(pipeline, pixel, size, options)
        few, many = timings["1 step"], timings[f"{options.steps} steps"]
        peaks = [t.peak_allocated_bytes for t in timings.values() if t.peak_allocated_bytes is not None]
        rows.append(
            Row(
                size=size,
                model=kind,
                unit="s",
                step=(many.median_seconds - few.median_seconds) / (options.steps - 1),
                decode=decode,
                image=many.median_seconds + decode,
                memory_gb=max(peaks) / 1e9 if peaks else None,
                details={"weights_sha256": digest, "dtype": dtype}
                | {name: timing.to_row() for name, timing in timings.items()},
            )
        )
    return rows


def _timings(
    pipeline: Any, pixel: bool, size: int, options: argparse.Namespace
) -> tuple[dict[str, Timing], float]:
    """Times of one step, of all steps and of the decoder, by name; and the decoder's seconds."""
    import torch

    def sample(steps: int) -> Any:
        try:
            return pipeline(
                prompt=_PROMPT,
                height=size,
                width=size,
                num_inference_steps=steps,
                guidance_scale=0.0,
                generator=torch.Generator().manual_seed(0),
                output_type="pt" if pixel else "latent",
            ).images
        except ValueError as error:  # a size that the model cannot paint
            raise EvaluateError(f"{size} px: {error}") from error

    timings = {
        "1 step": measure(partial(sample, 1), device(), repeats=options.repeats),
        f"{options.steps} steps": measure(partial(sample, options.steps), device(), repeats=options.repeats),
    }
    if pixel:
        return timings, 0.0
    latents = sample(1).to(pipeline.vae.dtype)
    timings["decoder"] = measure(partial(pipeline.vae.decode, latents), device(), repeats=options.repeats)
    return timings, timings["decoder"].median_seconds


def _chart(rows: Sequence[Row], path: Path) -> None:
    """Bars of a step, the decoder and the memory, by size."""
    from matplotlib.figure import Figure

    sizes = sorted({row.size for row in rows})
    colors = {"source": "#9aa1ae", "L2P": "#6d5efc"}
    panels = [("step", f"one step ({rows[0].unit})"), ("image", f"whole image ({rows[0].unit})")]
    if all(row.memory_gb is not None for row in rows):
        panels.append(("memory_gb", "peak memory (GB)"))
    figure = Figure(figsize=(4.2 * len(panels), 3.0), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for offset, model in ((-0.2, "source"), (0.2, "L2P")):
            own = [row for row in rows if row.model == model]
            places = [sizes.index(row.size) + offset for row in own]
            bars = axes.bar(
                places, [getattr(row, name) for row in own], 0.38, color=colors[model], label=model
            )
            axes.bar_label(bars, fmt="%.3g", fontsize=7)
        axes.set_xticks(range(len(sizes)), [f"{size} px" for size in sizes])
        axes.set_title(title, fontsize=10)
        if name != "memory_gb":
            axes.set_yscale("log")
        axes.tick_params(length=0, labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=130, facecolor="white")

"""A latent source with its VAE against its L2P model, per step and per image (Fig. 4): rows, table, chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from l2p_run.places import atomic_path, write_json, write_text

from l2p_eval.efficiency.forward import Count, Timing, measure
from l2p_eval.errors import EvalError

PAPER = {"step latency": 0.9767, "peak memory": 0.3881}
"""Sec. 3.4, at 4K: how much less than the source. The paper's, not measured here."""
PROMPT = "a red circle left of a blue square on a gray background"


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


def counted(size: int, counts: Mapping[str, Mapping[str, Count]], steps: int) -> list[Row]:
    """Return rows of {"source": {"transformer", "decoder"}, "L2P": {"transformer"}}."""
    rows = []
    for model, parts in counts.items():
        step = parts["transformer"].flops / 1e12
        decode = parts["decoder"].flops / 1e12 if "decoder" in parts else 0.0
        weights = sum(part.weight_bytes for part in parts.values())
        activations = max(part.peak_activation_bytes for part in parts.values())
        rows.append(
            Row(
                size=size,
                model=model,
                unit="TFLOP",
                step=step,
                decode=decode,
                image=steps * step + decode,
                memory_gb=(weights + activations) / 1e9,
                details={name: part.to_row() for name, part in parts.items()},
            )
        )
    return rows


def measured(
    model: str, pipeline: Any, size: int, *, device: str, steps: int, repeats: int, details: Mapping[str, Any]
) -> Row:
    """Time a pipeline: a step by the difference of two lengths, the decoder alone, and the whole image.

    Args:
        model: "source" (a latent pipeline, with its VAE) or "L2P".
        details: what else defines the numbers.

    Raises:
        EvalError: the model cannot paint this size.
    """

    def sample(length: int) -> Any:
        try:
            return pipeline(
                prompt=PROMPT,
                height=size,
                width=size,
                num_inference_steps=length,
                guidance_scale=0.0,
                generator=torch.Generator().manual_seed(0),
                output_type="latent" if model == "source" else "pt",  # no VAE, no conversion to 8 bit
            ).images
        except ValueError as error:  # a size that the model cannot paint
            raise EvalError(f"{size} px: {error}") from error

    one = measure(partial(sample, 1), device, repeats=repeats)
    all_ = measure(partial(sample, steps), device, repeats=repeats)
    timings = {"1 step": one, f"{steps} steps": all_}
    if model == "source":
        latents = sample(1).to(pipeline.vae.dtype)
        timings["decoder"] = measure(partial(pipeline.vae.decode, latents), device, repeats=repeats)
    decode = timings["decoder"].median_seconds if "decoder" in timings else 0.0
    return Row(
        size=size,
        model=model,
        unit="s",
        step=(all_.median_seconds - one.median_seconds) / (steps - 1),
        decode=decode,
        image=all_.median_seconds + decode,
        memory_gb=_peak(timings.values()),
        details=dict(details) | {name: timing.to_row() for name, timing in timings.items()},
    )


def _peak(timings: Any) -> float | None:
    known: list[Timing] = [timing for timing in timings if timing.peak_allocated_bytes is not None]
    return max(timing.peak_allocated_bytes or 0 for timing in known) / 1e9 if known else None


def table(rows: Sequence[Row], steps: int) -> str:
    """Return Markdown, source and L2P of a size under each other, with what L2P saves."""
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


def _savings(pair: Mapping[str, Row]) -> list[str]:
    source, l2p = pair["source"], pair["L2P"]
    values = [(source.step, l2p.step), None, (source.image, l2p.image), (source.memory_gb, l2p.memory_gb)]
    return [
        "" if v is None or not v[0] or v[1] is None else f"{100 * (1 - v[1] / v[0]):.1f} %" for v in values
    ]


def save_chart(rows: Sequence[Row], path: Path) -> None:
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
            bars = axes.bar(
                [sizes.index(row.size) + offset for row in own],
                [getattr(row, name) for row in own],
                0.38,
                color=colors[model],
                label=model,
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, facecolor="white")


def write_comparison(
    rows: Sequence[Row], folder: Path, *, steps: int, definition: Mapping[str, Any], provenance: Any
) -> dict[str, Any]:
    """Write efficiency.json, .md and .png; return the content of the first.

    Args:
        steps: of sampling, of a whole image.
        definition: what defines the numbers beside the rows' own details.
    """
    results = {
        "measured": any(row.unit == "s" for row in rows),
        "steps": steps,
        "definition": definition_of(definition),
        "rows": [vars(row) for row in rows],
        "paper": {"note": "the paper's own, at 4K, not measured here", "less than the source": PAPER},
        "provenance": provenance,
    }
    write_json(folder / "efficiency.json", results)
    write_text(folder / "efficiency.md", table(rows, steps) + "\n")
    save_chart(rows, folder / "efficiency.png")
    return results


def definition_of(more: Mapping[str, Any]) -> dict[str, Any]:
    """Return what defines every comparison, and `more`."""
    version_ = f"l2p-eval {version('l2p-eval')}"
    return {"metric version": version_, "batch": 1, "images": "square, of `size` px", **more}

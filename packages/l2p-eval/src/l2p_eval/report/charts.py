"""Charts as SVG that takes the page's text colour, and as PNG for Markdown."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = "#808182"  # replaced by currentColor in the SVG
_ACCENT = "#6d5efc"


def loss_figure(loss: Sequence[tuple[int, float]]) -> "Figure":
    """Training loss over steps: the logged values, and their running mean where there are enough of them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    axes = figure.add_subplot()
    steps, values = [step for step, _ in loss], [value for _, value in loss]
    smooth = running_mean(values, keep=1 - 1 / max(2, len(values) / 20))
    axes.plot(steps, values, color=_ACCENT, alpha=0.3 if len(values) > 8 else 1.0, linewidth=1)
    if len(values) > 8:
        axes.plot(steps, smooth, color=_ACCENT, linewidth=2)
        # The first steps are far above the rest; the curve should use the height for what comes after.
        settled = sorted(values[len(values) // 20 :])
        top, bottom = settled[int(0.985 * (len(settled) - 1))], settled[0]
        axes.set_ylim(bottom - 0.05 * (top - bottom), top + 0.25 * (top - bottom) + 1e-9)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss (eq. 5)", color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=_INK, length=0)
    axes.grid(axis="y", color=_INK, alpha=0.2, linewidth=0.7)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.spines["bottom"].set_alpha(0.4)
    axes.margins(x=0.01)
    return figure


def running_mean(values: Sequence[float], keep: float) -> list[float]:
    """Exponential mean without the bias of its start."""
    smooth, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight)
    return smooth


def to_svg(figure: "Figure") -> str:
    """Return the figure as an `<svg>` element, transparent, its text in the page's own colour and font."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "l2p", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")


def save_png(figure: "Figure", path: Path) -> None:
    """Save the figure on white, for Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=140, facecolor="white")

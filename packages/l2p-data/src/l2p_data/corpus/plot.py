"""The numbers of `stats` as a picture, after Fig. 2b and 2c: shares of the tree, prompt lengths, drops."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2p_data.corpus.files import atomic_path
from l2p_data.errors import DataError, checks

_PANELS = {
    "subclass": "Prompts by sub-class",
    "length": "Prompt length in characters",
    "reasons": "Dropped or failed, by reason",
    "size": "Image size in px",
}


@checks
def plot_stats(stats: Mapping[str, Any], out: str | Path) -> Path:
    """Draw what `preview.prompt_stats` or `corpus_stats` returned as horizontal bars, one panel per table.

    Args:
        stats: the numbers.
        out: `.png`, `.svg` or `.pdf`.

    Raises:
        DataError: matplotlib is missing, or the suffix is not one it knows.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(f"{error}; install l2p-data[plot]") from error
    out = Path(out)
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise DataError(f"plot {out} has suffix {out.suffix!r}; use .png, .svg or .pdf")
    panels = [(title, stats[name]) for name, title in _PANELS.items() if stats.get(name)]
    rows = [max(len(table), 2) for _, table in panels]
    figure = Figure(figsize=(7, 1.0 + 0.24 * sum(rows) + 0.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0]
    for (title, table), axis in zip(panels, axes, strict=True):
        bars = axis.barh([name or "(none)" for name in table], list(table.values()), color="#4477aa")
        axis.bar_label(bars, fontsize=7, padding=2)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.margins(x=0.12)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=out.suffix[1:], dpi=150)
    return out

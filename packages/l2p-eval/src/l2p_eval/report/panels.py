"""Charts of several panels, wrapped so that a page can show them."""

from pathlib import Path
from typing import Any

from l2p_run.places import atomic_path


def panels(title: str, count: int, *, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """Return matplotlib's figure and `count` axes in rows of at most `columns`.

    Args:
        title: over all of them.
        count: of panels.
        columns: in a row.
        size: (width, height) of a panel, in inches.
    """
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=12)
    every = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in every[count:]:
        axes.set_visible(False)
    for axes in every[:count]:
        axes.tick_params(which="both", labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, every[:count]


def save_panels(figure: Any, path: Path) -> None:
    """Write a PNG whose bytes depend on the drawing alone."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="white", metadata={"Software": None})

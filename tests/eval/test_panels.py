"""Charts of many panels stay readable: they wrap into rows."""

from pathlib import Path

import pytest
from l2p_eval.report.panels import panels, save_panels


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 2, 3), (7, 3, 3)], ids=lambda value: str(value)
)
def test_panels_wrap(count: int, rows: int, columns: int) -> None:
    figure, every = panels("a title", count, columns=3, size=(4.0, 2.0))
    assert len(every) == count
    assert all(axes.get_visible() for axes in every)
    grid = every[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (rows, columns)
    assert sum(axes.get_visible() for axes in figure.axes) == count
    assert figure.get_size_inches()[0] == pytest.approx(4.0 * columns)


def test_the_same_drawing_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figure, every = panels("a title", 4, columns=3, size=(2.0, 1.0))
        every[1].plot([1, 2], [3, 4])
        save_panels(figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

"""What a page shows of a training, from the files that the trainer writes."""

import json
from pathlib import Path
from typing import Any

from l2p_eval.layout import open_image

PROGRESS_PICTURES = 6
GRID_GAP = 2  # px between the pictures of a trainer's sample grid


def loss_of(metrics: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of a trainer's metrics.jsonl; empty where it is not there."""
    return [(record["step"], record["loss"]) for record in _lines(metrics) if record.get("event") == "step"]


def progress_of(samples: Path, strips_in: Path, *, rows: int) -> list[tuple[str, Path]]:
    """Return (caption, strip of pictures) of training samples, evenly chosen over the run, under the
    source's images of the same prompts.

    Args:
        samples: folder of the trainer's grids, step-000100.png.
        strips_in: gets the strips.
        rows: of a grid; 2 where the source's images are the upper one, 1 where it has none.
    """
    grids = sorted(samples.glob("step-*.png"))
    if len(grids) > PROGRESS_PICTURES:
        last = len(grids) - 1
        grids = [grids[round(i * last / (PROGRESS_PICTURES - 1))] for i in range(PROGRESS_PICTURES)]
    strips = [(f"step {int(path.stem.removeprefix('step-'))}", path, rows - 1) for path in grids]
    if grids and rows == 2:
        strips.insert(0, ("source", grids[-1], 0))
    return [(caption, _strip(caption, path, row, rows, strips_in)) for caption, path, row in strips]


def _strip(caption: str, grid: Path, row: int, rows: int, folder: Path) -> Path:
    """Cut one row out of a sample grid, and saves it."""
    image = open_image(grid)
    height = (image.height - GRID_GAP * (rows - 1)) // rows
    top = row * (height + GRID_GAP)
    path = folder / f"training-{caption.replace(' ', '-')}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.crop((0, top, image.width, top + height)).save(path)
    return path


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return a JSON Lines file without a torn last line."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records

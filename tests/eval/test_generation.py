"""Filling a folder: the same images in this process and in others, resumed, and never of mixed settings."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from l2p_eval.errors import EvalError
from l2p_eval.painting import generate_images, plan_jobs
from l2p_eval.report.pictures import grid_sheet
from PIL import Image

SETTINGS = {"model": "squares", "steps": 1}


def squares(device: str) -> object:
    """A model: a colour per seed."""

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [
            Image.new("RGB", (8, 8), (seed % 256, len(prompt), 0))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    return paint


def broken(device: str) -> object:
    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        if 3 in seeds:
            raise RuntimeError("boom")
        return [Image.new("RGB", (8, 8)) for _ in prompts]

    return paint


def test_what_is_there_is_kept_and_what_is_missing_is_painted(tmp_path: Path) -> None:
    jobs = plan_jobs(["a", "bb"], 2, seed=5)
    assert [job.seed for job in jobs] == [5, 6, 7, 8]
    seen: list[tuple[int, int]] = []
    paths = generate_images(
        squares, jobs, tmp_path / "x", settings=SETTINGS, batch_size=3, on_image=lambda *n: seen.append(n)
    )
    assert [Image.open(path).getpixel((0, 0)) for path in paths] == [
        (5, 1, 0),
        (6, 1, 0),
        (7, 2, 0),
        (8, 2, 0),
    ]
    assert seen == [(0, 4), (3, 4), (4, 4)]
    stamp = paths[0].stat().st_mtime_ns
    paths[3].unlink()
    generate_images(squares, jobs, tmp_path / "x", settings=SETTINGS)
    assert paths[3].is_file() and paths[0].stat().st_mtime_ns == stamp


def test_a_crash_keeps_what_was_painted(tmp_path: Path) -> None:
    jobs = plan_jobs(["a"] * 5, 1, seed=0)
    with pytest.raises(RuntimeError, match="boom"):
        generate_images(broken, jobs, tmp_path / "x", settings=SETTINGS, batch_size=1)
    assert len(list((tmp_path / "x").rglob("*.png"))) == 3


def test_a_folder_of_other_settings_or_prompts_is_refused(tmp_path: Path) -> None:
    jobs = plan_jobs(["a"], 1, seed=0)
    generate_images(squares, jobs, tmp_path / "x", settings=SETTINGS)
    with pytest.raises(EvalError, match="steps: 1 -> 2"):
        generate_images(squares, jobs, tmp_path / "x", settings=SETTINGS | {"steps": 2})
    with pytest.raises(EvalError, match="other prompts or seeds"):
        generate_images(squares, plan_jobs(["a"], 1, seed=1), tmp_path / "x", settings=SETTINGS)
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "file").touch()
    with pytest.raises(EvalError, match="holds other files"):
        generate_images(squares, jobs, tmp_path / "y", settings=SETTINGS)
    with pytest.raises(EvalError, match="nothing to paint"):
        plan_jobs([], 1, 0)


def test_images_of_other_settings_are_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    old = generate_images(squares, plan_jobs(["a"], 2, seed=0), tmp_path / "x", settings=SETTINGS)
    new = generate_images(
        squares, plan_jobs(["bb"], 1, seed=7), tmp_path / "x", settings=SETTINGS | {"steps": 2}, replace=True
    )
    assert not old[1].exists()
    assert Image.open(new[0]).getpixel((0, 0)) == (7, 2, 0)
    with pytest.raises(EvalError, match="other prompts or seeds"):
        generate_images(
            squares, plan_jobs(["a"], 2, seed=0), tmp_path / "x", settings=SETTINGS | {"steps": 2}
        )


def test_a_sheet_has_a_row_for_each_model(scenes: list[Path]) -> None:
    one = grid_sheet([("a", scenes[:2])], captions=["x", "y"])
    two = grid_sheet([("a", scenes[:2]), ("b", scenes[2:4])], captions=["x", "y"])
    assert two.width == one.width and two.height - one.height == 128 + 8


def test_a_model_that_a_process_cannot_load_says_why(tmp_path: Path) -> None:
    load = float  # of "cpu": any importable function that refuses its argument
    with pytest.raises(ValueError, match="could not convert string to float: 'cpu'"):
        generate_images(load, plan_jobs(["a"], 1, seed=0), tmp_path / "x", settings={}, workers=1)

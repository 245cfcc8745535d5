"""The patch grid: closed forms, an oracle in loops, and the pictures that it must tell apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_eval.errors import EvalError
from l2p_eval.metrics.patch_grid import jumps, patch_grid_of
from PIL import Image


def write(folder: Path, *pictures: np.ndarray) -> list[Path]:
    """(H, W) or (H, W, 3) uint8 arrays as PNG files."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return paths


def test_a_ramp_has_no_grid(tmp_path: Path) -> None:
    """Every step is the same, so that borders are like the rest: exactly 1, whatever the patch."""
    ramp = np.tile(np.arange(48, dtype=np.uint8) * 5, (48, 1))
    paths = write(tmp_path, ramp)
    for patch_size in (2, 7, 16, 47):
        assert patch_grid_of(paths, patch_size).value == pytest.approx(1.0)


def test_the_value_is_borders_over_inside_in_units_of_the_picture(tmp_path: Path) -> None:
    """Columns that rise by 1 inside patches of 4 and by 10 at their borders; rows do not change."""
    rises = np.where(np.arange(1, 16) % 4 == 0, 10, 1)
    line = np.concatenate([[0], np.cumsum(rises)]).astype(np.uint8)
    result = patch_grid_of(write(tmp_path, np.tile(line, (16, 1))), 4)
    # Across: 16 * 3 of 10 and 16 * 12 of 1; down: as many zeros.
    assert result.borders == pytest.approx(5 / 255) and result.inside == pytest.approx(0.5 / 255)
    assert result.value == pytest.approx(10.0)
    assert (result.name, result.patch_size, result.count) == ("patch-grid-4", 4, 1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31), height=st.integers(3, 20), width=st.integers(3, 20), patch=st.integers(2, 6)
)
def test_jumps_are_those_that_loops_over_pixels_find(seed: int, height: int, width: int, patch: int) -> None:
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    if max(height, width) <= patch:
        with pytest.raises(EvalError, match="no border"):
            jumps(image, patch)
        return
    borders, inside = [], []
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                here = float(image[channel, y, x])
                if x + 1 < width:
                    (borders if (x + 1) % patch == 0 else inside).append(
                        abs(here - float(image[channel, y, x + 1]))
                    )
                if y + 1 < height:
                    (borders if (y + 1) % patch == 0 else inside).append(
                        abs(here - float(image[channel, y + 1, x]))
                    )
    found = jumps(image, patch)
    for ours, theirs in zip(found, (borders, inside), strict=True):
        assert sorted(ours.tolist()) == pytest.approx(sorted(theirs))


def test_a_brighter_patch_raises_it_and_blur_over_borders_lowers_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    smooth = np.clip(128 + rng.normal(0, 6, (64, 64, 3)), 0, 255)
    offsets = np.kron(rng.normal(0, 20, (4, 4, 1)), np.ones((16, 16, 1)))
    plain, gridded = (
        patch_grid_of(write(tmp_path / name, np.clip(picture, 0, 255).astype(np.uint8)), 16).value
        for name, picture in (("plain", smooth), ("gridded", smooth + offsets))
    )
    assert plain == pytest.approx(1.0, abs=0.05) and gridded > 2


def test_the_order_of_images_does_not_matter_and_a_flat_one_takes_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (40, 24, 3), dtype=np.uint8) for _ in range(3)]
    paths = write(tmp_path, *noise, np.full((40, 24, 3), 9, dtype=np.uint8))
    assert patch_grid_of(paths, 8).value == pytest.approx(patch_grid_of(paths[::-1], 8).value, rel=1e-12)
    assert patch_grid_of(paths, 8).inside == pytest.approx(patch_grid_of(paths[:3], 8).inside * 3 / 4)


def test_what_cannot_be_measured_is_refused_by_name(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat", np.full((32, 32), 7, dtype=np.uint8))
    small = write(tmp_path / "small", np.zeros((16, 16), dtype=np.uint8))
    with pytest.raises(EvalError, match="flat inside their 16 px patches"):
        patch_grid_of(flat, 16)
    with pytest.raises(EvalError, match=r"0\.png: an image of 16x16 px has no border of 16 px patches"):
        patch_grid_of(small, 16)
    with pytest.raises(EvalError, match="give 2 or more"):
        patch_grid_of(flat, 1)
    with pytest.raises(EvalError, match="no images"):
        patch_grid_of([], 16)
    with pytest.raises(EvalError, match="NaN or infinity"):
        jumps(torch.full((3, 8, 8), torch.nan), 4)

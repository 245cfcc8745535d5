"""Arguments of surgery and of the head that are of another kind: one line, before anything is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from l2p_arch import ArchError, DetailerHead, convert, upscale
from l2p_mini.paths import PIXEL_MODEL, SOURCE_MODEL

IMAGES = torch.rand(40, 3, 32, 32) * 2 - 1

CONVERT: dict[str, list[Any]] = {
    "source": [None, 5, b"x"],
    "out": [None, 5],
    "patch_size": [0, 1.5, "16", True, None],
    "head_channels": ["abc", [1.5], 5, [0], ["8"], [True], {"a": 1}],
    "head_bottleneck": [0, -1, 1.5, "8"],
    "head_decoder_floor": [-1, 1.5, "8", None],
    "seed": ["a", 1.5, None, 2**70],
    "dtype": ["fp32", 5],
    "recipe": [None, 5, "magic"],
    "initialisation": [None, 5, ""],
    "prediction": [None, 5],
    "decoder": [None, 5],
    "reading": [None, 5],
    "max_shard_bytes": [0, 1.5, "x"],
    "overwrite": ["no", 1],
    "calibration_images": [
        5,
        "x",
        [IMAGES],
        IMAGES.numpy(),
        IMAGES[0],
        IMAGES[:, :1],
        IMAGES[:0],
        (IMAGES * 127.5 + 127.5).to(torch.uint8),
        IMAGES * 127.5 + 127.5,
        torch.full_like(IMAGES, float("nan")),
    ],
    "calibration_prompts": [["a"], "x", 5, iter(["a"] * 40), [5] * 40, ["a"] * 41],
}
UPSCALE: dict[str, list[Any]] = {
    "model": [None, 5],
    "patch_size": [0, 16, 24, "32", 32.0, None],
    "head_channels": ["a", 5, [1.5]],
    "initialisation": [5, None, "magic"],
    "seed": [1.5],
    "overwrite": ["no"],
}
HEAD: dict[str, list[Any]] = {
    "feature_channels": [0, 1.5, "8"],
    "channels": [(), (0,), (1.5,), "ab", 5],
    "bottleneck_channels": [0, -1, 1.5],
    "decoder_floor": [-1, "x"],
    "input_channels": [0, -1],
}


@pytest.mark.parametrize("name", CONVERT)
def test_convert_names_it_and_writes_nothing(tmp_path: Path, name: str) -> None:
    call: dict[str, Any] = {"source": SOURCE_MODEL, "out": tmp_path / "out", "head_channels": [8, 8, 8, 8]}
    call |= {"recipe": "aligned", "calibration_images": IMAGES}
    for value in CONVERT[name]:
        with pytest.raises(ArchError) as raised:
            convert(**{**call, name: value})
        assert "\n" not in str(raised.value), value
        assert not list(tmp_path.iterdir()), value


@pytest.mark.parametrize("name", UPSCALE)
def test_upscale_names_it_and_writes_nothing(tmp_path: Path, name: str) -> None:
    call: dict[str, Any] = {"model": PIXEL_MODEL, "out": tmp_path / "out", "patch_size": 32}
    for value in UPSCALE[name]:
        with pytest.raises(ArchError):
            upscale(**{**call, name: value})
        assert not list(tmp_path.iterdir()), value


@pytest.mark.parametrize("name", HEAD)
def test_a_head_names_it(name: str) -> None:
    for value in HEAD[name]:
        with pytest.raises(ArchError):
            DetailerHead(**{"feature_channels": 8, name: value})


def test_whole_numbers_of_numpy_are_widths() -> None:
    head = DetailerHead(np.int64(8), (np.int64(4), 4))
    assert head(torch.zeros(1, 3, 16, 16), torch.zeros(1, 8, 4, 4)).shape == (1, 3, 16, 16)

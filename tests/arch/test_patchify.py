"""Patches are `pixel_unshuffle`'s, and folding loses nothing."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_arch import ArchError, patches_to_pixels, pixels_to_patches


@settings(max_examples=25, deadline=None)
@given(
    h=st.integers(1, 4), w=st.integers(1, 4), patch=st.sampled_from([1, 2, 4, 16]), batch=st.integers(1, 3)
)
def test_patches_equal_pixel_unshuffle_and_fold_back(h: int, w: int, patch: int, batch: int) -> None:
    pixels = torch.arange(batch * 3 * h * w * patch * patch).float().reshape(batch, 3, h * patch, w * patch)
    patches = pixels_to_patches(pixels, patch)
    assert torch.equal(patches, F.pixel_unshuffle(pixels, patch))
    assert torch.equal(patches_to_pixels(patches, patch), pixels)


def test_a_size_that_does_not_fit_is_named_with_its_neighbours() -> None:
    with pytest.raises(ArchError, match="height 1000 is not a multiple of patch size 16; use 992 or 1008"):
        pixels_to_patches(torch.zeros(1, 3, 1000, 1024), 16)
    with pytest.raises(ArchError, match="width 8 is not a multiple of patch size 16; use 16"):
        pixels_to_patches(torch.zeros(1, 3, 16, 8), 16)

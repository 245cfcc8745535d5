"""Pixels <-> patch tokens on a grid (large-patch tokenization, sec. 3.3)."""

from einops import rearrange
from torch import Tensor

from l2p_arch.errors import ArchError


def check_size(height: int, width: int, patch_size: int) -> None:
    """Raise unless both sides (px) are positive multiples of the patch size."""
    for side, length in (("height", height), ("width", width)):
        if not hasattr(length, "__index__"):
            raise ArchError(f"{side} {length} is not a whole number of px; use a multiple of {patch_size}")
        if length < patch_size or length % patch_size:
            lower = max(length // patch_size, 1) * patch_size
            upper = (length // patch_size + 1) * patch_size
            remedy = f"use {upper}" if lower == upper else f"use {lower} or {upper}"
            raise ArchError(f"{side} {length} is not a multiple of patch size {patch_size}; {remedy}")


def pixels_to_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """Fold every patch into channels: pixels (B, 3, H, W) -> (B, 3*P*P, H/P, W/P), channels in the order (c,
    py, px)."""
    check_size(pixels.shape[-2], pixels.shape[-1], patch_size)
    return rearrange(pixels, "b c (h py) (w px) -> b (c py px) h w", py=patch_size, px=patch_size)


def patches_to_pixels(patches: Tensor, patch_size: int) -> Tensor:
    """Return the inverse of `pixels_to_patches`: (B, C*P*P, h, w) -> (B, C, h*P, w*P)."""
    return rearrange(patches, "b (c py px) h w -> b c (h py) (w px)", py=patch_size, px=patch_size)

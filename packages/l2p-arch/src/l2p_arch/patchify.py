"""Pixels <-> patch tokens on a grid (large-patch tokenization, sec. 3.3)."""

from einops import rearrange
from torch import Tensor

from l2p_arch.arguments import LARGEST_SIDE, check_patch_size
from l2p_arch.errors import ArchError


def check_size(height: int, width: int, patch_size: int) -> None:
    """Raise unless both sides (px) are positive multiples of the patch size."""
    check_patch_size(patch_size)
    for side, length in (("height", height), ("width", width)):
        if not hasattr(length, "__index__"):
            raise ArchError(f"{side} {length} is not a whole number of px; use a multiple of {patch_size}")
        if length > LARGEST_SIDE:
            raise ArchError(f"{side} {length} is no size of a picture; the largest is {LARGEST_SIDE:,} px")
        if length < patch_size or length % patch_size:
            lower = max(length // patch_size, 1) * patch_size
            upper = (length // patch_size + 1) * patch_size
            remedy = f"use {upper}" if lower == upper else f"use {lower} or {upper}"
            raise ArchError(f"{side} {length} is not a multiple of patch size {patch_size}; {remedy}")


def pixels_to_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """Fold every patch into channels: pixels (B, 3, H, W) -> (B, 3*P*P, H/P, W/P), channels in the order (c,
    py, px)."""
    _check_images("pixels", pixels, "(B, C, H, W)")
    check_size(pixels.shape[-2], pixels.shape[-1], patch_size)
    return rearrange(pixels, "b c (h py) (w px) -> b (c py px) h w", py=patch_size, px=patch_size)


def patches_to_pixels(patches: Tensor, patch_size: int) -> Tensor:
    """Return the inverse of `pixels_to_patches`: (B, C*P*P, h, w) -> (B, C, h*P, w*P)."""
    check_patch_size(patch_size)
    _check_images("patches", patches, "(B, C * P * P, h, w)")
    if patches.shape[1] % patch_size**2:
        raise ArchError(
            f"patches have {patches.shape[1]} channels; wanted a multiple of {patch_size} x {patch_size}"
        )
    return rearrange(patches, "b (c py px) h w -> b c (h py) (w px)", py=patch_size, px=patch_size)


def _check_images(name: str, value: object, wanted: str) -> None:
    if not isinstance(value, Tensor):
        raise ArchError(f"{name} are a {type(value).__name__}; wanted a tensor {wanted}")
    if value.ndim != 4:
        raise ArchError(f"{name} have the shape {tuple(value.shape)}; wanted {wanted}")

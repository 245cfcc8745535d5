"""Inpainting and outpainting: which pixels are painted, and canvases larger than a picture.

No latent stands between a pixel and the model, so that what a mask keeps is kept exactly: in every step its
pixels are set to the image at that step's noise, and at the end to the image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from l2p_arch.errors import ArchError
from l2p_arch.patchify import check_size
from l2p_arch.sampling.initial_state import size_of, to_pixels
from l2p_arch.sampling.pictures import as_people_see_it


class Canvas(NamedTuple):
    """What a call paints on; its sides, px, are whole patches."""

    height: int
    width: int
    shown: tuple[int, int]
    """Height and width of the result."""
    image: Any
    mask: Tensor | None
    """(N, 1, height, width) in [0, 1]; None where everything is painted."""


def canvas_for(
    image: Any, mask_image: Any, height: int | None, width: int | None, *, count: int, patch_size: int
) -> Canvas:
    """Return the canvas of a call's `image`, `mask_image`, `height` and `width`, each of which may be
    None.
    """
    if mask_image is not None and image is None:
        raise ArchError("mask_image says where to paint an image anew; give the image too")
    free = height is None and width is None
    if image is not None and (height is None or width is None):
        own = size_of(image)
        if mask_image is None or not free:
            own = (
                own[0] // patch_size * patch_size or patch_size,
                own[1] // patch_size * patch_size or patch_size,
            )
        height, width = own[0] if height is None else height, own[1] if width is None else width
    height, width = 1024 if height is None else height, 1024 if width is None else width
    if mask_image is None or not free:
        check_size(height, width, patch_size)
    if mask_image is None:
        return Canvas(height, width, (height, width), image, None)
    pixels = to_pixels(image, count, height, width)
    pixels, mask = padded_to_patches(pixels, to_mask(mask_image, count, height, width), patch_size)
    return Canvas(pixels.shape[-2], pixels.shape[-1], (height, width), pixels, mask.to(pixels.device))


def to_mask(mask: Any, count: int, height: int, width: int) -> Tensor:
    """Return a mask as (count, 1, height, width), float32 in [0, 1]: 1 is painted, 0 is kept.

    Args:
        mask: one, or one per image: PIL images (white is painted, transparent is kept), arrays (N, H, W) or
            (N, H, W, 1), tensors (N, H, W) or (N, 1, H, W); floats in [0, 1], uint8 in 0 ... 255, or bool.
        height, width: px; a mask of another size is resized, by nearest neighbours where it is black and
            white.
    """
    each = list(mask) if isinstance(mask, list | tuple) else [mask]
    if not each:
        raise ArchError("mask_image is an empty list; give one mask, or one per image")
    masks = [_resized(part, height, width) for one in each for part in _values(one)]
    if len(masks) not in (1, count):
        raise ArchError(f"{len(masks)} masks for {count} images; give one for all, or one per image")
    return torch.stack(masks).expand(count, 1, height, width)


def _values(mask: Any) -> Tensor:
    """Return one given mask, or a batch of them, as (N, h, w) in [0, 1]."""
    if isinstance(mask, Image.Image):
        mask = np.asarray(_grey(mask))[None]
    shape = tuple(getattr(mask, "shape", ()))
    if isinstance(mask, np.ndarray):
        mask = torch.from_numpy(mask.copy())
        if mask.ndim >= 3 and mask.shape[-1] == 1:
            mask = mask[..., 0]
    if not isinstance(mask, Tensor):
        raise ArchError(f"mask_image is {type(mask).__name__}; wanted PIL images, tensors or arrays")
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or not mask.numel():
        raise ArchError(f"mask_image has the shape {shape}; wanted (N, H, W), one value per pixel")
    values = mask.cpu().float() / (255 if mask.dtype == torch.uint8 else 1)
    whole = mask.dtype in (torch.uint8, torch.bool) or mask.is_floating_point()
    if not (whole and bool(values.min() >= 0) and bool(values.max() <= 1)):  # false for NaN, too
        raise ArchError(
            f"mask_image holds {mask.dtype} values from {float(values.min()):g} to {float(values.max()):g}; "
            "wanted floats in [0, 1], uint8 or bool: 1 is painted, 0 is kept"
        )
    return values


def _grey(mask: Image.Image) -> Image.Image:
    mask = ImageOps.exif_transpose(mask)
    if mask.has_transparency_data:
        layers = mask.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "black"), layers).convert("L")
    return mask if mask.mode == "L" else as_people_see_it(mask).convert("L")


def _resized(mask: Tensor, height: int, width: int) -> Tensor:
    """Return (h, w) -> (1, height, width)."""
    if mask.shape == (height, width):
        return mask[None]
    if bool(((mask == 0) | (mask == 1)).all()):
        return F.interpolate(mask[None, None], size=(height, width), mode="nearest-exact")[0]
    soft = F.interpolate(mask[None, None], size=(height, width), mode="bilinear", antialias=True)
    return soft[0].clamp(0, 1)


def padded_to_patches(image: Tensor, mask: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Image (N, 3, H, W) and mask (N, 1, H, W), continued to the right and below up to whole patches.

    The image goes on with its last pixels, which may be painted wherever anything is.
    """
    right, below = -image.shape[-1] % patch_size, -image.shape[-2] % patch_size
    if not (right or below):
        return image, mask
    filled = torch.ones_like(mask) * mask.amax(dim=(2, 3), keepdim=True)
    filled = F.pad(filled, (0, right, 0, below), mode="replicate")
    filled[..., : mask.shape[-2], : mask.shape[-1]] = mask
    return F.pad(image, (0, right, 0, below), mode="replicate"), filled


def extend_canvas(
    picture: Image.Image, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0
) -> tuple[Image.Image, Image.Image]:
    """Return a larger canvas around a picture, and its mask, for outpainting: `pipeline(image=...,
    mask_image=...)`.

    Args:
        picture: any PIL image; it is taken as people see it (upright, transparency on white).
        left, top, right, bottom: px that are added on each side.

    Returns:
        The canvas in RGB, continued with the picture's outermost pixels, and the mask in L: 255 where
        something is to be painted, 0 over the picture.
    """
    added: Sequence[Any] = (left, top, right, bottom)
    if not all(isinstance(side, int) and side >= 0 for side in added) or not any(added):
        raise ArchError(
            f"left, top, right and bottom are {left}, {top}, {right} and {bottom}; "
            "wanted whole numbers of px, at least one of them above 0"
        )
    pixels = np.asarray(as_people_see_it(picture))
    sides = ((top, bottom), (left, right))
    canvas = np.pad(pixels, (*sides, (0, 0)), mode="edge")
    mask = np.pad(np.zeros(pixels.shape[:2], np.uint8), sides, constant_values=255)
    return Image.fromarray(canvas), Image.fromarray(mask)

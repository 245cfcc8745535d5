"""Pictures in and out of sampling: what a user hands in, in upright 8 bit RGB, and what a state becomes."""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from l2p_arch.errors import ArchError

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def as_people_see_it(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB: turned as its EXIF data say, on white where it is transparent, its 16 bits
    scaled.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _eight_bit(picture).convert("RGB")
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return picture.convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Return a grey picture of 16 bits (0 to 65535) or of floats (0 to 1 or 0 to 255) in 8 bits; never
    clipped.
    """
    values = np.asarray(picture, dtype=np.float64)
    if picture.mode == "F":
        most = 1.0 if np.abs(values).max(initial=0.0) <= 1 else 255.0
    else:
        most = 255.0 if values.max(initial=0.0) <= 255 and picture.mode == "I" else 65535.0
    if not (np.isfinite(values).all() and values.min(initial=0.0) >= 0 and values.max(initial=0.0) <= most):
        raise ArchError(
            f"a picture of the mode {picture.mode} holds values from {values.min():g} to {values.max():g}; "
            f"wanted 0 to {most:g}"
        )
    return Image.fromarray((values * (255 / most)).round().astype(np.uint8))


def to_images(x_0: Tensor, output_type: str) -> Any:
    """Return a final state (N, 3, H, W) as images.

    Args:
        x_0: around [-1, 1]; what sampling gives may leave it a little, and is clamped.
        output_type: "pil", "np" (N, H, W, 3 in [0, 1]), "pt" (N, 3, H, W in [0, 1]), or "latent" for the
            state as it is, whatever it holds.

    Raises:
        ArchError: a value is NaN or infinite, of which no picture is made.
    """
    if output_type == "latent":
        return x_0
    pixels = x_0.float().cpu()
    broken = (~torch.isfinite(pixels)).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        which = "the image" if len(pixels) == 1 else f"image {', '.join(map(str, broken))} of {len(pixels)}"
        raise ArchError(
            f"the model painted NaN or infinity in {which}: look for damaged weights, an adapter or guidance "
            "that is too strong, or float16, which overflows where bfloat16 and float32 do not"
        )
    pixels = (pixels.clamp(-1, 1) + 1) / 2
    if output_type == "pt":
        return pixels
    array = rearrange(pixels, "n c h w -> n h w c").numpy()
    if output_type == "np":
        return array
    return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in array]

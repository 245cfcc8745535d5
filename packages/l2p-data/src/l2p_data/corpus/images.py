"""Images: to bytes and back, and which must not enter the corpus because something went wrong."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from l2p_data.corpus.files import read_picture
from l2p_data.errors import DataError

_BLANK_RANGE = 2  # of 255: PNG noise and rounding aside, one single colour


def image_fault(pixels: NDArray[np.floating], min_entropy: float = 0.0) -> str | None:
    """Return what is wrong with an image, or None.

    Args:
        pixels: (H, W, 3) in [0, 1], as diffusers returns with `output_type="np"`.
        min_entropy: bits; images whose brightness histogram (256 bins) says less are "low-entropy". A
        photograph has
            6 to 7.5, a flat drawing with few colours 1 to 3; 0 leaves the check out.
    """
    if not np.isfinite(pixels).all():
        return "not-finite: the pipeline returned NaN or infinity"
    levels = np.round(np.clip(pixels, 0, 1) * 255)
    spread = int((levels.max(axis=(0, 1)) - levels.min(axis=(0, 1))).max())
    if spread <= _BLANK_RANGE:
        return f"blank: all pixels are within {spread} of 255 levels"
    if min_entropy > 0:
        brightness = np.round(levels @ np.array([0.299, 0.587, 0.114])).astype(np.int64)
        share = np.bincount(brightness.ravel(), minlength=256) / brightness.size
        bits = float(-(share[share > 0] * np.log2(share[share > 0])).sum())
        if bits < min_entropy:
            return f"low-entropy: {bits:.2f} bits, wanted {min_entropy:g}"
    return None


def decode_image(image: Mapping[str, Any] | bytes) -> Image.Image:
    """Return an `image` cell (or its bytes) as an RGB PIL image, as people see it.

    Raises:
        DataError: the bytes are no whole image, or far too large a one.
    """
    content = image if isinstance(image, bytes) else image["bytes"]
    if not isinstance(content, bytes) or not content:
        raise DataError("the row holds no image bytes")
    return read_picture(content, name="the image").image


def encode_image(image: Image.Image, format: str = "png") -> bytes:
    """Return PNG (lossless) or JPEG (quality 95, no chroma subsampling) bytes of an image."""
    buffer = io.BytesIO()
    if format == "png":
        image.save(buffer, "PNG", compress_level=3)
    elif format == "jpeg":
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        raise DataError(f"image format {format!r} is not known; use 'png' or 'jpeg'")
    return buffer.getvalue()

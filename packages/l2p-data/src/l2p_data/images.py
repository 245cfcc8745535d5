"""Images that must not enter the corpus: what a diffusion model gives when something went wrong."""

import numpy as np
from numpy.typing import NDArray

_BLANK_RANGE = 2  # of 255: PNG noise and rounding aside, one single colour


class BadImageError(RuntimeError):
    """An image that was made, and is no picture. Making it again with the same seed would not help."""


def image_fault(pixels: NDArray[np.floating], min_entropy: float = 0.0) -> str | None:
    """What is wrong with an image, or None.

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

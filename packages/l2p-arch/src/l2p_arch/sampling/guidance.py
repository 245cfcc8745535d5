"""Classifier-free guidance of velocities."""

import math

from torch import Tensor

from l2p_arch.errors import ArchError


def check_guidance(scale: float, rescale: float, distilled: float | None) -> None:
    """Raise unless they are numbers: NaN would turn guidance off without a word, infinity gives NaN."""
    values = {"guidance_scale": scale, "guidance_rescale": rescale, "distilled_guidance_scale": distilled}
    for name, value in values.items():
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ArchError(f"{name} {value} is not a finite number; 1 to 10 are usual, rescale is 0 to 1")
    if not 0 <= rescale <= 1:
        raise ArchError(f"guidance_rescale {rescale} is not between 0 and 1")


def guided(positive: Tensor, negative: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Return neg + s * (pos - neg), as in the released inference.

    Args:
        positive, negative: velocities with the prompt and with what is led away from, (B, 3, H, W).
        scale: s; 1 returns the positive one.
        rescale: 0 to 1, how far the result's spread is pulled back to the positive one's, against the burnt
            look of strong guidance (Lin et al. 2024, arXiv 2305.08891, sec. 3.4).
    """
    velocity = negative + scale * (positive - negative)
    if not rescale:
        return velocity
    spreads = [each.std(dim=(1, 2, 3), keepdim=True) for each in (positive, velocity)]
    return velocity * (1 + rescale * (spreads[0] / spreads[1].clamp_min(1e-12) - 1))

"""Guidance: classifier-free, by two velocities, or a number that the model has learned to take."""

import math
from numbers import Real
from typing import Any

from torch import Tensor

from l2p_arch.errors import ArchError


def check_guidance(scale: float, rescale: float, distilled: float | None) -> None:
    """Raise unless they are numbers: NaN would turn guidance off without a word, infinity gives NaN."""
    values = {"guidance_scale": scale, "guidance_rescale": rescale, "distilled_guidance_scale": distilled}
    for name, value in values.items():
        if value is None and name == "distilled_guidance_scale":
            continue
        if isinstance(value, bool) or not (isinstance(value, Real) and math.isfinite(value)):
            raise ArchError(f"{name} {value} is not a finite number; 1 to 10 are usual, rescale is 0 to 1")
    if not 0 <= rescale <= 1:
        raise ArchError(f"guidance_rescale {rescale} is not between 0 and 1")


def learned_scale(model: Any, scale: float, **unused: Any) -> float | None:
    """Return the scale that a model with a `guidance_range` takes as a number; None for other models.

    Args:
        model: an `L2PTransformer`.
        scale: 1 or less is 1, no guidance.
        unused: what such a model cannot hear, by its name in the pipeline's call; each must be empty or 0.

    Raises:
        ArchError: a scale outside of the range, or something in `unused`.
    """
    if model.guidance_range is None:
        return None
    lowest, highest = model.guidance_range
    if not lowest <= max(scale, 1.0) <= highest:
        raise ArchError(
            f"guidance_scale {scale:g} is outside of {lowest:g} to {highest:g}, the scales that this model "
            "has learned; give one of these"
        )
    for name, value in unused.items():
        given = any(value) if isinstance(value, list | tuple) else value is not None and value != 0
        if given and value != "":
            raise ArchError(
                f"{name} was given, and this model takes its guidance as a number, in one pass: it leads "
                f"away from the empty prompt by guidance_scale alone; leave {name} out"
            )
    return max(float(scale), 1.0)


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

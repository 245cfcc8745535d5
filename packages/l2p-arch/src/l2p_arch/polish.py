"""Passes over a finished image that take off the grain that a sampler leaves, and straighten what it bent.

No noise is added: the image is taken for x_t at a sigma, and what the model sees in it takes its place. At a
low sigma that takes off grain. At a high one the model draws the picture again, after its own idea of it:
outlines come out straight and mixed colours clear, and fine texture is lost where the passes at lower sigmas,
which should follow, cannot put it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from l2p_arch.errors import ArchError

if TYPE_CHECKING:
    from torch import Tensor


GRAIN = 0.25
"""The highest sigma of a pass that takes off grain and leaves the drawing as it is, of a model that is not
enlarged."""


def polish_sigmas(polish: Any, name: str = "polish") -> tuple[float, ...]:
    """Return the noise levels of the passes, in their order: one number, or several; none where it is 0.

    Raises:
        ArchError: one of them is no sigma in [0, 1).
    """
    given = list(polish) if isinstance(polish, Sequence) and not isinstance(polish, str) else [polish]
    for sigma in given:
        if isinstance(sigma, bool) or not isinstance(sigma, Real) or not 0 <= float(sigma) < 1:
            raise ArchError(
                f"{name} {sigma} is not a sigma in [0, 1), such as 0.2, or several of them in their order; "
                "0 leaves the image as it was sampled"
            )
    return tuple(float(sigma) for sigma in given if sigma)


def configured_polish(config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the noise levels of the passes that a model's config (transformer/config.json) names, in [0, 1).

    Raises:
        ArchError: one of them is no sigma.
    """
    return polish_sigmas((config.get("alignment") or {}).get("polish", 0.0), "alignment.polish")


def enlarged_sigma(sigma: float, factor: int) -> float:
    """Return the sigma in [0, 1) at which pictures of `factor` times the side are as noisy as small ones at
    `sigma`: a block's mean has 1 / factor of white noise, so sigma / (1 - sigma) grows with the factor.
    """
    return factor * sigma / (factor * sigma + 1 - sigma)


def grain_sigmas(sigmas: Sequence[float], enlargement: int = 1) -> tuple[float, ...]:
    """Return the passes that take off grain, up to `GRAIN`; all of them, where there are none such.

    Args:
        sigmas: of the passes of a model, in [0, 1).
        enlargement: how often its patch is the aligned one along a side (`L2PTransformer.enlargement`).
    """
    highest = enlarged_sigma(GRAIN, enlargement)
    return tuple(sigma for sigma in sigmas if sigma <= highest) or tuple(sigmas)


def polished(
    x_0: Tensor,
    sigmas: Sequence[float],
    velocity: Callable[[Tensor, Tensor], Tensor],
    *,
    least_sigma: float = 0.0,
    enlargement: int = 1,
) -> Tensor:
    """Return the image (N, 3, H, W) that a model sees in x_0 if it takes its grain for noise, pass by pass.

    Args:
        sigmas: of the passes, in their order.
        velocity: the model's, unguided, of x_t (N, 3, H, W) and sigma (N,).
        least_sigma: by what the model divides at smaller sigmas (`L2PTransformer.least_sigma`), so that its
            image is x_t less that many velocities.
        enlargement: as `grain_sigmas`. An enlarged model divides in its block means alone, at the small
            model's sigma; passes below that are left out.
    """
    divided = 0.0 if enlargement > 1 else least_sigma
    for sigma in sigmas:
        if enlargement > 1 and sigma < enlarged_sigma(least_sigma, enlargement):
            continue
        x_t = (1 - sigma) * x_0
        x_0 = x_t - max(sigma, divided) * velocity(x_t, x_t.float().new_full((len(x_t),), sigma))
    return x_0

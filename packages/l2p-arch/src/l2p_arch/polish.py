"""Passes over a finished image that take off the grain that a sampler leaves.

No noise is added: the image is taken for x_t at a low sigma, and what the model sees in it takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from l2p_arch.errors import ArchError

if TYPE_CHECKING:
    from torch import Tensor


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


def polished(x_0: Tensor, sigmas: Sequence[float], velocity: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the image (N, 3, H, W) that a model sees in x_0 if it takes its grain for noise, pass by pass.

    Args:
        sigmas: of the passes, in their order.
        velocity: the model's, unguided, of x_t (N, 3, H, W) and sigma (N,).
    """
    for sigma in sigmas:
        x_t = (1 - sigma) * x_0
        x_0 = x_t - sigma * velocity(x_t, x_t.float().new_full((len(x_t),), sigma))
    return x_0

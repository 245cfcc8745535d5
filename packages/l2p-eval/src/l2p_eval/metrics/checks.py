"""What a metric refuses to compute with, so that none of them returns a number that means nothing."""

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from l2p_eval.errors import EvalError


def check_features(name: str, features: Any, *, least: int = 1) -> None:
    """Raise `EvalError` for what are no features.

    Args:
        name: what they are called in errors, such as "the reference features".
        features: must be a tensor (N, D) of finite floats with N of at least `least` and D of at least 1.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise EvalError(f"{name} are {kind}; wanted a tensor (N, D) of floats")
    if features.ndim != 2 or len(features) < least or not features.shape[1]:
        raise EvalError(
            f"{name} have the shape {tuple(features.shape)}; wanted (N, D) of {least} or more images"
        )
    if not torch.isfinite(features).all():
        raise EvalError(f"{name} hold NaN or infinity; look for broken images or weights")


def check_whole(**given: Any) -> None:
    """Raise `EvalError` for what is no whole number."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise EvalError(f"{name} is {value!r}; wanted a whole number")


def finite(name: str, value: float) -> float:
    """Return a score, or raise `EvalError` for NaN and infinity."""
    if not math.isfinite(value):
        raise EvalError(f"{name} is {value}: the features are too large to be squared, or broken")
    return value


def unit(features: Tensor, name: str = "the features") -> Tensor:
    """Return rows (N, D) of length 1, or raise `EvalError` for those without a direction."""
    if not torch.isfinite(features).all():
        raise EvalError(f"{name} hold NaN or infinity; look for broken images or weights")
    lengths = features.norm(dim=-1, keepdim=True)
    if not ((lengths > 0) & torch.isfinite(lengths)).all():
        raise EvalError(
            f"{name} of an image or a text are all zero, or too large to be squared, and have no direction "
            "to compare; look for broken images or weights"
        )
    return features / lengths

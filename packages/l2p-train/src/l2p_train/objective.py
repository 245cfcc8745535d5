"""The L2P objective, eq. 5: E || (noise - x_0) - v_theta(x_t, sigma) ||^2 on pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from einops import reduce
from torch import Tensor

Conditioning = Mapping[str, Tensor]
VelocityModel = Callable[[Tensor, Tensor, Sequence[Conditioning]], Tensor]


def interpolate(x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return x_t = (1 - sigma) * x_0 + sigma * noise.

    Args:
        x_0: (B, 3, H, W) pixels in [-1, 1].
        noise: (B, 3, H, W) standard normal.
        sigma: (B,) in [0, 1]; 0 = image, 1 = noise.
    """
    sigma = sigma[:, None, None, None]
    return (1 - sigma) * x_0 + sigma * noise


def velocity_target(x_0: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity d x_t / d sigma = noise - x_0, (B, 3, H, W)."""
    return noise - x_0


def l2p_loss(
    model: VelocityModel, x_0: Tensor, noise: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]
) -> Tensor:
    """Return eq. 5 per sample, (B,), as a mean over channels and pixels in float32."""
    x_t = interpolate(x_0, noise, sigma)
    velocity = model(x_t, sigma, conditioning)
    squared_error = F.mse_loss(velocity.float(), velocity_target(x_0, noise), reduction="none")
    return reduce(squared_error, "b c h w -> b", "mean")


def _no_weight(sigma: Tensor) -> Tensor | float:
    return 1.0


def _image_error_weight(sigma: Tensor) -> Tensor:
    return 3 * sigma**2


def _cosine_map_weight(sigma: Tensor) -> Tensor:
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


# Weights of mean 1 over a uniform sigma. "x_0" measures the error of the implied image x_t - sigma * v: it
# stresses high noise; "cosmap" (SD3) stresses the middle.
LOSS_WEIGHTINGS: dict[str, Callable[[Tensor], Any]] = {
    "none": _no_weight,
    "x_0": _image_error_weight,
    "cosmap": _cosine_map_weight,
}

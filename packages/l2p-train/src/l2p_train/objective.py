"""The L2P objective, eq. 5: E || (noise - x_0) - v_theta(x_t, sigma) ||^2 on pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

Conditioning = Mapping[str, Tensor]
_PLACES = 1000  # of the sigma axis
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
    return l2p_losses(model, x_0, noise, sigma, conditioning)[0]


def l2p_losses(
    model: VelocityModel,
    x_0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditioning: Sequence[Conditioning],
    terms: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return eq. 5 per sample, (B,), and what `terms` make of (x_t, sigma, velocity, x_0), (B,): see
    `image_terms`."""
    x_t = interpolate(x_0, noise, sigma)
    velocity = model(x_t, sigma, conditioning).float()
    squared_error = F.mse_loss(velocity, velocity_target(x_0, noise), reduction="none")
    added = None if terms is None else terms(x_t, sigma, velocity, x_0)
    return reduce(squared_error, "b c h w -> b", "mean"), added


def _no_weight(sigma: Tensor) -> Tensor | float:
    return 1.0


def _image_error_weight(sigma: Tensor) -> Tensor:
    return 3 * sigma**2


def _cosine_map_weight(sigma: Tensor) -> Tensor:
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


def closed_form_weight(model: Any) -> Callable[[Tensor], Tensor]:
    """Return the weight "error": 1 / error(sigma)^2 of an aligned model, of mean 1 over a uniform sigma.

    What the closed form of an aligned model leaves is several times larger at low noise, and eq. 5 would
    mostly be about that. So each sigma counts alike in units of what is left for the head; EDM (arXiv
    2206.00364, sec. 5) weighs by the inverse square of its output's scale for the same reason.

    Args:
        model: an `L2PTransformer` of the recipe "aligned".

    Returns:
        A function of sigma (B,) in [0, 1]; its values are above 0, one for each thousandth of sigma.
    """
    with torch.no_grad():
        sigmas = torch.linspace(0, 1, _PLACES + 1, device=model.aligner.errors.device)
        weights = model.aligner.error(sigmas).float().square().reciprocal()
    weights = weights / weights.mean()

    def weight(sigma: Tensor) -> Tensor:
        return weights.to(sigma.device)[(sigma * _PLACES).round().long()]

    return weight


# Weights of mean 1 over a uniform sigma. "x_0" measures the error of the implied image x_t - sigma * v: it
# stresses high noise; "cosmap" (SD3) stresses the middle.
LOSS_WEIGHTINGS: dict[str, Callable[[Tensor], Any]] = {
    "none": _no_weight,
    "x_0": _image_error_weight,
    "cosmap": _cosine_map_weight,
}


def weighting(name: str, model: Any) -> Callable[[Tensor], Any]:
    """Return the weight of `TrainConfig.loss_weighting`, a function of sigma (B,), for a model that
    `TrainConfig.check_recipe` lets pass."""
    return closed_form_weight(model) if name == "error" else LOSS_WEIGHTINGS[name]

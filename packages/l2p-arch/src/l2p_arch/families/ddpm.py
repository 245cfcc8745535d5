"""Sources that were trained by DDPM: where on their path an x_t of flow matching lies."""

import torch
from torch import Tensor


def ddpm_step(sigma: Tensor) -> Tensor:
    """Return the step, 0 to 999 and fractional, that has x_t's signal-to-noise ratio; for DDPM's linear
    betas.

    The steps reach from sigma 0.0099 to 0.9937; beyond either end they stay.
    """
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device="cpu")).cumprod(0)
    sigmas = ((1 - kept).sqrt() / (kept.sqrt() + (1 - kept).sqrt())).to(sigma)
    above = torch.searchsorted(sigmas, sigma).clamp(1, 999)
    below = above - 1
    return (below + (sigma - sigmas[below]) / (sigmas[above] - sigmas[below])).clamp(0, 999)


def to_ddpm(x_t: Tensor, sigma: Tensor) -> Tensor:
    """Return (1 - sigma) x_0 + sigma noise, (B, C, h, w), scaled so that its coefficients' squares sum to
    1.
    """
    scale = ((1 - sigma).square() + sigma.square()).rsqrt()
    return (x_t * scale.view(-1, 1, 1, 1)).to(x_t.dtype)


def latent_of_noise(z_t: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return the latent (B, r, h, w) that a predicted noise points to, at z_t = (1 - sigma) z_0 + sigma
    noise.

    Beyond the last of the steps the signal counts as it does there: nearly nothing is left of it.
    """
    sigma = sigma.clamp_max(0.9937).view(-1, 1, 1, 1)
    return (z_t - sigma * noise) / (1 - sigma)

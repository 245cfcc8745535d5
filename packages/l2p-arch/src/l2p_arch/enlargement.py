"""An aligned model with a larger patch: the small model on the means of blocks, and a second head for what
is finer.

Notation: f how often the patch has grown along a side; D x the means of blocks of f x f pixels, N y every
pixel repeated f x f times, so that D N = 1. White noise of x_t has 1 / f of its size in D x_t, and so

    x_s = k D x_t  with  k = 1 / (1 - sigma + sigma / f)  is the small model's x_t at  sigma_s = k sigma / f

exactly, whatever the image: Q^T x_s and sigma' are those of the small model. Q' = N Q / f, s' = f s and the
means N x_mean are the same maps on the large patch. What the small model says of the block means, velocity
v_s and image x_0_hat_s, is kept whole. Of the deviations r_t = x_t - N D x_t a prior is known: those of a
smooth enlargement, b, with a standard deviation c beside them. Then

    x_0_hat = N x_0_hat_s + b + g (r_t - (1 - sigma) b),  g = (1 - sigma) c^2 / ((1 - sigma)^2 c^2 + sigma^2)

and its velocity needs no division by sigma. What the second head adds has its block means taken off. So
D x_0_hat = x_0_hat_s at every step, trained or not, and the means of a whole sampling are the small model's
picture, from the noise f D noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

DETAIL = 0.1
"""c: root mean square of an image's deviations from a smooth enlargement of its block means, in [-1, 1]."""


class Reduced(NamedTuple):
    """What the small model sees."""

    pixels: Tensor
    """x_s, (B, 3, H / f, W / f), float32."""
    sigma: Tensor
    """sigma_s, (B,)."""
    gain: Tensor
    """k, (B,)."""


def reduced(pixels: Tensor, sigma: Tensor, factor: int) -> Reduced:
    """Return the small model's x_t of the large one's x_t (B, 3, H, W), float32, at sigma (B,)."""
    gain = 1 / (1 - sigma + sigma / factor)
    return Reduced(_each(gain) * block_means(pixels, factor), gain * sigma / factor, gain)


def enlarged(
    pixels: Tensor,
    sigma: Tensor,
    small: Reduced,
    small_velocity: Tensor,
    small_error: Tensor,
    factor: int,
    detail: float = DETAIL,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is known of the large image before the second head.

    Args:
        pixels, sigma: x_t (B, 3, H, W) and (B,).
        small: `reduced` of them.
        small_velocity: the small model's, at its own pixels and sigma.
        small_error: root mean square of what its closed form leaves, (B,).
        factor: f.
        detail: c.

    Returns:
        The enlarged image of the small model (B, 3, H, W), the velocity, and the root mean square that is
        expected to be left of it, (B,).
    """
    x_0 = small.pixels - _each(small.sigma) * small_velocity
    expected = deviations(x_0, factor)
    means = (1 / factor - 1) * small.pixels + _each(small.gain / factor) * small_velocity
    power = ((1 - sigma) * detail).square() + sigma.square()
    found = pixels - repeated(block_means(pixels, factor), factor)
    kept, shown = (sigma - (1 - sigma) * detail**2) / power, sigma / power
    velocity = repeated(means, factor) + _each(kept) * found - _each(shown) * expected
    error = ((small.gain / factor * small_error).square() + detail**2 / power).sqrt()
    return repeated(x_0, factor) + expected, velocity, error


def block_means(images: Tensor, factor: int) -> Tensor:
    """D: (B, C, H, W) -> (B, C, H / f, W / f)."""
    return F.avg_pool2d(images, factor)


def repeated(images: Tensor, factor: int) -> Tensor:
    """N: (B, C, h, w) -> (B, C, h f, w f)."""
    return images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def deviations(images: Tensor, factor: int) -> Tensor:
    """b: what a bicubic enlargement (B, C, h f, w f) of images (B, C, h, w) adds to its own block means."""
    smooth = F.interpolate(images, scale_factor=factor, mode="bicubic")
    return smooth - repeated(block_means(smooth, factor), factor)


def split_head_channels(
    head_channels: Sequence[int], enlargement: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Return (widths of the head for what is finer, of the Detailer Head) of an aligned model whose patch is
    `enlargement` times the one that it was aligned with: a finer level for every halving of it."""
    finer = enlargement.bit_length() - 1
    return head_channels[:finer], head_channels[finer:]


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)

"""Pixels as the source's latents see them, and back: what the aligned recipe adds to a source's transformer.

Notation: x a pixel patch (3*P*P values), z a latent patch (r values), sigma 0 = image, 1 = noise.

There. A semi-orthogonal Q (3*P*P, r) with x close to s Q (z - z_mean) + x_mean turns white pixel noise into
white latent noise: Q^T x_t holds the signal (1 - sigma) s z and the noise sigma. With k = 1 / (s (1 - sigma)
+ sigma), k Q^T x_t is what the source calls z_t at the noise level sigma' = k sigma. Q^T x / s is only a part
of what the VAE says of an image, and a least-squares map W says more. So the trunk reads the best linear
estimate of z_t, k Q^T x_t + (1 - sigma') (W - Q^T / s) E[x_0 | x_t], with the Wiener filter's E[x_0 | x_t] in
the directions in which pixel patches vary most; at sigma 1 this is Q^T x_t again, white noise.

Back. The source's velocity v gives a latent z_hat = z_t - sigma' v, a linear map decodes it to an image d,
and filters that know sigma estimate the pixels' velocity from d and x_t. The Detailer Head adds what is not
linear, in units of the error that these filters were measured to leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2p_arch.errors import ArchError
from l2p_arch.patchify import patches_to_pixels, pixels_to_patches

LEAST_SIGMA = 0.05
"""Where there are no filters, velocity = (x_t - x_0_hat) / max(sigma, this)."""
DETAIL_SIDES = (3, 7, 15)
"""Sides of the means (px) whose differences are the detail that the head reads."""
DETAIL_LIMIT = 4.0
"""Where detail is cut off, in units of the closed form's error."""
HEAD_INPUTS = 3 + 3 + 3 * len(DETAIL_SIDES) + 2
"""Channels that the Detailer Head reads in place of the 3 of x_t: see `head_input`."""


class Alignment(nn.Module):
    """The linear maps between pixels and latents, as float32 buffers that no training and no cast changes.

    Args:
        patch_size: side P of a pixel patch, px.
        latent_channels: values r of a latent patch.
        decoder_kernel: tokens along a side that the decoder of one token reads, odd.
        filter_sigmas: noise levels K that the filters were fitted at; 0 for none.
        decoded_kernel, pixel_kernel: sides of the filters over d and x_t, px, odd.
        reading: directions of pixel patches in which W corrects what the trunk reads; at most all.
    """

    subspace: Tensor
    scale: Tensor
    pixel_mean: Tensor
    latent_mean: Tensor
    decoder: Tensor
    filter_sigmas: Tensor
    filters: Tensor
    errors: Tensor
    directions: Tensor
    variances: Tensor
    correction: Tensor

    def __init__(
        self,
        patch_size: int,
        latent_channels: int,
        *,
        decoder_kernel: int = 1,
        filter_sigmas: int = 0,
        decoded_kernel: int = 5,
        pixel_kernel: int = 1,
        reading: int = 0,
    ) -> None:
        super().__init__()
        pixels = 3 * patch_size**2
        if latent_channels < 1 or latent_channels > pixels:
            raise ArchError(
                f"{latent_channels} latent channels do not fit into the {pixels} values of a patch of "
                f"{patch_size} px; use a larger patch"
            )
        if any(side < 1 or side % 2 == 0 for side in (decoder_kernel, decoded_kernel, pixel_kernel)):
            raise ArchError("the sides of an alignment's kernels must be odd")
        if not isinstance(reading, int) or reading < 0:
            raise ArchError(f"an alignment's reading is {reading!r}; wanted a number of directions, or 0")
        self.patch_size = patch_size
        self.kernels = decoded_kernel, pixel_kernel
        inputs = 3 * (decoded_kernel**2 + pixel_kernel**2) + 1
        shapes = {
            "subspace": (pixels, latent_channels),
            "scale": (),
            "pixel_mean": (pixels,),
            "latent_mean": (latent_channels,),
            "decoder": (pixels, latent_channels, decoder_kernel, decoder_kernel),
            "filter_sigmas": (filter_sigmas,),
            "filters": (filter_sigmas, 3, inputs),
            "errors": (max(filter_sigmas, 1),),
        }
        self.reading = min(reading, pixels)
        if self.reading:
            shapes |= {
                "directions": (pixels, self.reading),
                "variances": (self.reading,),
                "correction": (latent_channels, self.reading),  # of W - Q^T / s
            }
        for name, shape in shapes.items():
            self.register_buffer(
                name, torch.ones(shape) if name in ("scale", "errors") else torch.zeros(shape)
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow the model to another device, but never into another dtype: the velocity divides by sigma
        what bfloat16 rounds."""

        def keeping_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keeping_dtype, recurse)

    def to_latents(self, pixels: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the source would see: its z_t (B, r, h, w) and its sigma' (B,), of x_t (B, 3, H, W) at
        sigma (B,)."""
        patches = pixels_to_patches(pixels.float(), self.patch_size)
        source_sigma = sigma / (self.scale * (1 - sigma) + sigma)
        k = 1 / (self.scale * (1 - sigma) + sigma)
        centred = patches - _per_sample(1 - sigma) * self.pixel_mean[:, None, None]
        seen = _per_sample(k) * torch.einsum("xr,bxhw->brhw", self.subspace, centred)
        known = self.latent_mean[:, None, None]
        if self.reading:
            known = known + torch.einsum("rk,bkhw->brhw", self.correction, self._denoised(centred, sigma))
        return seen + _per_sample(1 - source_sigma) * known, source_sigma

    def _denoised(self, centred: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x_t] (B, K, h, w) along the directions, of patches of x_t without their mean."""
        image = (1 - sigma)[:, None]
        gains = image * self.variances / (image.square() * self.variances + sigma[:, None].square())
        seen = torch.einsum("xk,bxhw->bkhw", self.directions, centred)
        return gains[..., None, None] * seen

    def decode(self, latents: Tensor) -> Tensor:
        """Return the image d (B, 3, H, W) of latent patches z (B, r, h, w), linearly."""
        centred = latents.float() - self.latent_mean[:, None, None]
        patches = F.conv2d(centred, self.decoder, padding=self.decoder.shape[-1] // 2)
        return patches_to_pixels(patches + self.pixel_mean[:, None, None], self.patch_size)

    def velocity(self, pixels: Tensor, decoded: Tensor, sigma: Tensor) -> Tensor:
        """Return the closed form's velocity (B, 3, H, W), float32, of x_t, d and sigma (B,)."""
        if not len(self.filters):
            return (pixels - decoded) / _per_sample(sigma.clamp_min(LEAST_SIGMA))
        filters = self._at(sigma, self.filters)  # (B, 3, inputs)
        return apply_filters(filters, pixels, decoded, self.kernels)

    def error(self, sigma: Tensor) -> Tensor:
        """Root mean square of what the closed form leaves of the velocity at sigma (B,)."""
        if not len(self.filters):
            return self.errors[0] / sigma.clamp_min(LEAST_SIGMA)
        return self._at(sigma, self.errors)

    def _at(self, sigma: Tensor, values: Tensor) -> Tensor:
        """Return `values` (K, ...) at sigma (B,), linear between the noise levels of the fit and constant
        beyond.
        """
        upper = torch.searchsorted(self.filter_sigmas, sigma.contiguous()).clamp(
            1, len(self.filter_sigmas) - 1
        )
        low, high = self.filter_sigmas[upper - 1], self.filter_sigmas[upper]
        weight = ((sigma - low) / (high - low)).clamp(0, 1)
        weight = weight.view(-1, *[1] * (values.ndim - 1))
        return torch.lerp(values[upper - 1], values[upper], weight)


def alignment_sizes(alignment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Alignment` in a model's config."""
    others = ("version", "polish", "enlargement", "detail")
    return {name: value for name, value in alignment.items() if name not in others}


def apply_filters(filters: Tensor, pixels: Tensor, decoded: Tensor, kernels: tuple[int, int]) -> Tensor:
    """Return one set of linear filters a sample, (B, 3, inputs), over d and x_t (B, 3, H, W) and a constant.

    Beyond the border both repeat their outermost pixels.
    """
    batch, count = len(pixels), 3 * kernels[0] ** 2
    parts = (
        (decoded, filters[..., :count], kernels[0]),
        (pixels, filters[..., count:-1], kernels[1]),
    )
    total = filters[..., -1][..., None, None]
    for image, weight, side in parts:
        margin = side // 2
        padded = F.pad(image, (margin,) * 4, mode="replicate") if margin else image
        weight = weight.reshape(batch * 3, 3, side, side)
        whole = F.conv2d(padded.reshape(1, batch * 3, *padded.shape[2:]), weight, groups=batch)
        total = total + whole.view(batch, 3, *pixels.shape[2:])
    return total


def head_input(pixels: Tensor, decoded: Tensor, velocity: Tensor, error: Tensor, sigma: Tensor) -> Tensor:
    """Return what the Detailer Head reads, (B, 17, H, W).

    x_0_hat of the closed form and d; the detail of x_0_hat at three sizes, in units of the error that the
    closed form leaves at sigma (B,): in flat parts this is the noise that has to go, at one size whatever
    sigma is, and at edges it is cut off smoothly; sigma as two planes.

    Args:
        pixels, decoded, velocity: x_t, d and the closed form's velocity, (B, 3, H, W).
        error: root mean square of what the closed form leaves of the velocity, (B,).
    """
    x_0 = pixels - _per_sample(sigma) * velocity
    unit = _per_sample(sigma * error).clamp_min(1e-4)
    smooth, details = x_0, []
    for side in DETAIL_SIDES:
        smoother = local_mean(x_0, side)
        details.append(DETAIL_LIMIT * torch.tanh((smooth - smoother) / (DETAIL_LIMIT * unit)))
        smooth = smoother
    planes = torch.stack((sigma, sigma.clamp(1e-3, 1 - 1e-3).logit() / 4), dim=1)
    planes = planes[..., None, None].expand(-1, -1, *pixels.shape[2:])
    return torch.cat((x_0, decoded, *details, planes), dim=1)


def local_mean(image: Tensor, side: int) -> Tensor:
    """Return the mean of the square of `side` (odd) px around each pixel of (B, C, H, W), within the image.

    `F.avg_pool2d` adds up all side^2 pixels, which took a fourteenth of the miniature's training step.
    """
    for dim in (-1, -2):
        places = torch.arange(image.shape[dim], device=image.device)
        first, last = (places - side // 2).clamp_min(0), (places + side // 2).clamp_max(len(places) - 1)
        counts = (last - first + 1).to(image.dtype)
        image = _running_sum(image, side, dim) / (counts if dim == -1 else counts[:, None])
    return image


def _running_sum(image: Tensor, side: int, dim: int) -> Tensor:
    """Return sums of `side` neighbours along a dimension, by the binary digits of `side`: sums of twice as
    many come from two of half. Differences of one long cumulative sum would lose the digits that the detail
    is in."""
    length, margin = image.shape[dim], side // 2
    sums = F.pad(image, (margin, margin) if dim == -1 else (0, 0, margin, margin))
    total, width, start = torch.zeros_like(image), 1, 0
    while True:
        if side & width:
            total = total + sums.narrow(dim, start, length)
            start += width
        if 2 * width > side:
            return total
        left = sums.shape[dim] - width
        sums, width = sums.narrow(dim, 0, left) + sums.narrow(dim, width, left), 2 * width


def normalised(features: Tensor) -> Tensor:
    """Return tokens (B, D, h, w) with mean 0 and mean square 1 over their channels, whatever size the
    residual stream has."""
    centred = features.float()
    centred = centred - centred.mean(dim=1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-12)


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)

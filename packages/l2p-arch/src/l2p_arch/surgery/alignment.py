"""Fits of the aligned recipe on calibration images: subspace, reading, decoder, filters that know sigma.

All are sums over tokens or pixels in float64, so that memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from l2p_arch.alignment import Alignment
from l2p_arch.errors import ArchError
from l2p_arch.patchify import pixels_to_patches

FILTER_SIGMAS = tuple(0.008 + 0.992 * (step / 16) ** 1.6 for step in range(17))  # denser near the image
_RIDGE = 1e-3  # of a token fit, as a share of the inputs' mean variance: tokens are few where images are
_READING_RIDGE = 1e-4  # of a direction's variance, as a share of the mean of all
_PIXEL_RIDGE = 1e-6  # of a pixel fit: there are thousands of pixels for every input


@dataclass(frozen=True, kw_only=True)
class Seamlessness:
    """How much of the way from pixels to latents and back is linear; known before any training."""

    pixels_from_latents: float
    """R^2 of pixels, decoded linearly from the VAE's latents, 0 to 1."""
    pixels_from_subspace: float
    """The same by s Q alone, which is what the trunk's noise lies in."""
    latents_from_subspace: float
    """R^2 of the latents by Q^T x / s, from clean pixels."""
    latents_from_reading: float
    """The same as the trunk reads them, which is more where a least-squares map corrects the subspace."""
    scale: float
    """s: the noise shift is the source's times this."""


def fit_subspace(alignment: Alignment, images: Tensor, latents: Tensor) -> Seamlessness:
    """Set Q, s, the means, the reading and the decoder of an alignment.

    Args:
        alignment: float32, on the CPU; changed in place.
        images: (N, 3, H, W) in [-1, 1].
        latents: their latent patches (N, r, h, w).

    Raises:
        ArchError: images without variance or too few for the fit, or latents that are not finite.
    """
    patches = pixels_to_patches(images.float(), alignment.patch_size)
    x = rearrange(patches, "b c h w -> (b h w) c").double()
    z = rearrange(latents, "b c h w -> (b h w) c").double()
    _check_samples(x, z)
    x_mean, z_mean = x.mean(0), z.mean(0)
    x, z = x - x_mean, z - z_mean
    left, _, right = torch.linalg.svd(x.T @ z, full_matrices=False)
    subspace = left @ right  # (3PP, r)
    seen = x @ subspace
    scale = float(seen.norm() / z.norm())
    alignment.subspace.copy_(subspace)
    alignment.scale.fill_(scale)
    alignment.pixel_mean.copy_(x_mean)
    alignment.latent_mean.copy_(z_mean)
    read = seen / scale
    if alignment.reading:
        read = read + _fit_reading(alignment, x, z)
    return Seamlessness(
        scale=scale,
        pixels_from_latents=_fit_decoder(alignment, patches, latents),
        pixels_from_subspace=_explained(x, scale * z @ subspace.T),
        latents_from_subspace=_explained(z, seen / scale),
        latents_from_reading=_explained(z, read),
    )


def _fit_reading(alignment: Alignment, x: Tensor, z: Tensor) -> Tensor:
    """Fit what W, the least squares of z on x, adds to Q^T / s; returns it for clean patches (T, r).

    Args:
        x, z: centred tokens (T, 3PP) and (T, r), float64.
    """
    moment = x.T @ x / len(x)
    variances, directions = torch.linalg.eigh(moment)
    # The largest ones; a variance that few tokens tell can be near zero, or below it by rounding.
    variances = (
        variances.flip(0)[: alignment.reading].clamp_min(0) + _READING_RIDGE * variances.clamp_min(0).mean()
    )
    directions = directions.flip(1)[:, : alignment.reading]
    along = x @ directions
    correction = z.T @ along / len(x) / variances
    correction = correction - alignment.subspace.double().T @ directions / float(alignment.scale)
    alignment.directions.copy_(directions)
    alignment.variances.copy_(variances)
    alignment.correction.copy_(correction)
    return along @ correction.T


def _fit_decoder(alignment: Alignment, patches: Tensor, latents: Tensor) -> float:
    """Ridge regression of a pixel patch on the latent patches around it; returns its R^2."""
    side = alignment.decoder.shape[-1]
    centred = (latents.float() - alignment.latent_mean[:, None, None]).double()
    inputs = rearrange(F.unfold(centred, side, padding=side // 2), "b c t -> (b t) c")
    wanted = rearrange(
        patches.double() - alignment.pixel_mean.double()[:, None, None], "b c h w -> (b h w) c"
    )
    gram = inputs.T @ inputs
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved = torch.linalg.solve(gram + ridge, inputs.T @ wanted)  # (r * side * side, 3PP)
    alignment.decoder.copy_(solved.T.reshape(alignment.decoder.shape))
    return _explained(wanted, inputs @ solved)


def use_low_rank_decoder(alignment: Alignment) -> None:
    """Decode by s Q in place of least squares."""
    middle = alignment.decoder.shape[-1] // 2
    alignment.decoder.zero_()
    alignment.decoder[..., middle, middle] = alignment.scale * alignment.subspace


def fit_filters(
    alignment: Alignment,
    images: Tensor,
    predict: Callable[[Tensor, Tensor, int], Tensor],
    *,
    sigmas: Sequence[float] = FILTER_SIGMAS,
    seed: int = 0,
) -> dict[float, float]:
    """Set the filters of an alignment: per noise level, least squares of the velocity on d and x_t.

    Args:
        alignment: with its subspace and decoder; changed in place.
        images: (N, 3, H, W) in [-1, 1].
        predict: (x_t (B, 3, H, W), sigma (B,), number of the first image) -> z_hat (B, r, h, w), of the
            source's own transformer.

    Returns:
        Eq. 5 of the closed form on these images, by sigma.
    """
    generator = torch.Generator().manual_seed(seed)
    left = {}
    for place, level in enumerate(sigmas):
        gram: Tensor | None = None
        moment, energy, count = torch.zeros(0), 0.0, 0
        for first in range(0, len(images), 8):
            x_0 = images[first : first + 8].float()
            noise = torch.randn(x_0.shape, generator=generator)
            sigma = torch.full((len(x_0),), level)
            x_t = (1 - level) * x_0 + level * noise
            rows = _filter_inputs(alignment, x_t, alignment.decode(predict(x_t, sigma, first)))
            wanted = rearrange(noise - x_0, "b c h w -> (b h w) c")
            # Products in float32, sums of batches in float64: a quarter of the time, and the errors below
            # move by two in ten thousand at the most.
            part, cross = (rows.T @ rows).double(), (rows.T @ wanted).double()
            gram, moment = (part, cross) if gram is None else (gram + part, moment + cross)
            energy, count = energy + float(wanted.square().sum(dtype=torch.float64)), count + wanted.numel()
        assert gram is not None
        ridge = _PIXEL_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        solved = torch.linalg.solve(gram + ridge, moment)
        error = (energy + float((solved * (gram @ solved - 2 * moment)).sum())) / count
        if not error >= 0:
            raise ArchError(
                f"the filters at sigma {level:.3f} cannot be fitted: the source answers no numbers"
            )
        alignment.filter_sigmas[place] = level
        alignment.filters[place].copy_(solved.T)
        alignment.errors[place] = error**0.5
        left[level] = error
    return left


def _filter_inputs(alignment: Alignment, x_t: Tensor, decoded: Tensor) -> Tensor:
    """Return what the filters of every pixel multiply, (pixels, inputs), float32."""
    parts = []
    for image, side in zip((decoded, x_t), alignment.kernels, strict=True):
        margin = side // 2
        padded = F.pad(image, (margin,) * 4, mode="replicate") if margin else image
        parts.append(rearrange(F.unfold(padded, side), "b c p -> (b p) c"))
    return F.pad(torch.cat(parts, dim=1), (0, 1), value=1.0)


def _check_samples(x: Tensor, z: Tensor) -> None:
    if not bool(torch.isfinite(z).all()):
        raise ArchError(
            "the VAE's latents of the calibration images hold NaN or infinity; load it in float32, or look "
            "for broken images"
        )
    if float(x.var(dim=0).mean()) < 1e-6:
        raise ArchError(
            "the calibration images are of one colour: nothing can be aligned on them; give pictures of what "
            "the source paints"
        )
    if len(z) < 4 * z.shape[1]:
        raise ArchError(
            f"{len(z)} tokens of calibration images are too few for {z.shape[1]} latent channels: wanted at "
            f"least {4 * z.shape[1]}; give more images, or larger ones"
        )


def _explained(wanted: Tensor, got: Tensor) -> float:
    return 1 - float((wanted - got).square().sum() / wanted.square().sum())

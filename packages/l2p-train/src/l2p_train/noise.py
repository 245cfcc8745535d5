"""Noise levels and noise: how sigma is drawn, the noise shift, and randomness as a function of the sample
counter.

Axis: sigma 0 = image, 1 = noise. A distribution is its quantile function: sigma = Q(u), u uniform in (0, 1],
so that a density can be tested in closed form and a sample's sigma depends on nothing but its own u.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2p_train.config import TrainConfig

GRAIN_SIZE = 0.8
"""The most that `grain` has, in units of the noise: at the polish's sigma 0.2 a standard deviation of 0.2 of
the image in [-1, 1]."""
GRAIN_CELLS = (1, 1, 2, 4, 8)
"""Sides of the grain's cells, px."""


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels towards noise: sigma' = s * sigma / (1 + (s - 1) * sigma) (sec. 3.4, Fig. 12).

    Args:
        sigma: any shape, in [0, 1].
        shift: s > 0; 1 changes nothing, 3 is the paper's at 1K, 4 at 4K; 1 / s undoes s.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def uniform_sigma(u: Tensor, config: TrainConfig) -> Tensor:
    """Uniform over the shifted schedule: sigma = shift(u), density s / (s - (s - 1) * sigma)^2."""
    return shift_sigma(u, config.noise_shift)


def logit_normal_sigma(u: Tensor, config: TrainConfig) -> Tensor:
    """Draw sigma = shift(sigmoid(mean + std * z)), z standard normal: most samples at middle noise."""
    z = torch.special.ndtri(u.clamp(1e-7, 1 - 1e-7))
    return shift_sigma(torch.sigmoid(config.logit_mean + config.logit_std * z), config.noise_shift)


def discrete_sigma(u: Tensor, config: TrainConfig) -> Tensor:
    """Return the public code's form: one of `sigma_points` levels 1, (n-1)/n, ..., 1/n, shifted."""
    points = config.sigma_points
    return shift_sigma(torch.ceil(u * points).clamp(1, points) / points, config.noise_shift)


SIGMA_DISTRIBUTIONS: dict[str, Callable[[Tensor, TrainConfig], Tensor]] = {
    "uniform": uniform_sigma,
    "logit-normal": logit_normal_sigma,
    "discrete": discrete_sigma,
}


def sample_generator(seed: int, counter: int) -> np.random.Generator:
    """Return sample `counter`'s own generator: a function of (seed, counter) in any process."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, counter], dtype=np.uint64)))


class Draw(NamedTuple):
    """All randomness of one sample."""

    sigma: float  # noise level in (0, 1]
    drop_caption: bool  # train this sample on the empty prompt
    noise: Tensor  # (3, H, W), float32, standard normal; a sample of the polish has a smaller one


def draw(config: TrainConfig, counter: int, height: int, width: int, polish: float = 0.0) -> Draw:
    """Draw sample `counter`'s noise level, caption dropout and noise, in this fixed order.

    With `stratified_sigma`, u = frac(offset(seed) + counter * golden ratio): any run of neighbours covers
    (0, 1] evenly, while each u stays uniform over seeds.

    Args:
        polish: the sigma at which the model first takes the grain off a finished image (the first of
            `l2p_arch.polish.grain_sigmas`); a share
            `config.polish_share` of the samples has this sigma and `grain` for noise.
    """
    generator = sample_generator(config.seed, counter)
    u = 1.0 - generator.random()  # in (0, 1]
    if config.stratified_sigma:
        offset = sample_generator(config.seed, 2**63).random()
        u = 1.0 - math.modf(offset + counter * 0.6180339887498949)[0]
    drop_caption = bool(generator.random() < config.caption_dropout)
    sigma = SIGMA_DISTRIBUTIONS[config.sigma_distribution](torch.tensor(u, dtype=torch.float64), config)
    noise = torch.from_numpy(generator.standard_normal((3, height, width), dtype=np.float32))
    if config.polish_share and generator.random() < config.polish_share:
        return Draw(polish, drop_caption, grain(generator, height, width))
    return Draw(float(sigma), drop_caption, noise)


def draw_guidance(seed: int, counter: int, scales: tuple[float, float]) -> float:
    """Draw the guidance of sample `counter`, uniform over the range that a student learns (Meng et al. 2023,
    sec. 3.1); from a stream of its own, so that noise and sigma stay what they are without it."""
    key = np.array([seed, counter], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 1]))
    return float(generator.uniform(*scales))


def grain(generator: np.random.Generator, height: int, width: int) -> Tensor:
    """Return what a sampler leaves on a finished image, in units of the noise: (3, height, width), float32.

    Ours; the paper has no such pass.

    Normal noise in cells of 1 (two times of five), 2, 4 or 8 px, smooth between their centres, of a size
    `GRAIN_SIZE` u^2 with u uniform in [0, 1): mostly little, sometimes none. A model that is told a sigma and
    sees less noise than that has to find out by itself how much there is, and answers eq. 5 of it.
    """
    size = GRAIN_SIZE * generator.random() ** 2
    cell = int(generator.choice(GRAIN_CELLS))
    cells = (3, -(-height // cell), -(-width // cell))
    noise = torch.from_numpy(generator.standard_normal(cells, dtype=np.float32))
    if cell > 1:
        noise = F.interpolate(noise[None], size=(height, width), mode="bilinear")[0]
    return size * noise

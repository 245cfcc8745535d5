"""Eq. 5 of a finished model on given pictures, the same noise for every model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from l2p_arch.sampling.initial_state import draw_noise, generators_of
from l2p_arch.sampling.painter import load_pipeline
from l2p_run.pictures import open_picture
from torch import Tensor

from l2p_train.config import TrainConfig
from l2p_train.data.corpus import first_images
from l2p_train.objective import l2p_loss

SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


@torch.inference_mode()
def held_out_loss(
    model: Path,
    pictures: Sequence[Path],
    prompts: Sequence[str],
    *,
    max_sequence_length: int,
    device: str,
    dtype: str,
    sigmas: Sequence[float] = SIGMAS,
    batch_size: int = 32,
) -> float:
    """Return the mean loss over pictures and `sigmas`.

    Args:
        model: an L2P model directory.
        pictures: files, all of one size.
        prompts: one of each picture.
        max_sequence_length: tokens of a prompt.
        device: "cpu", "cuda", "cuda:1".
        dtype: of the weights: "float32", "bfloat16" or "float16".
        sigmas: points of the axis from image (0) to noise (1).
        batch_size: pictures at a time.
    """
    x_0 = torch.stack([_pixels(path) for path in pictures])
    pipeline = load_pipeline(model, device=device, dtype=dtype)
    conditioning = pipeline.encode(list(prompts), max_sequence_length=max_sequence_length)
    return _mean_loss(pipeline.transformer, x_0, conditioning, sigmas, batch_size, device)


@torch.inference_mode()
def seen_loss(
    model: Path, train: TrainConfig, images: int, *, multiple: int, device: str, dtype: str
) -> float:
    """Return the same of the first `images` of the corpus that a run trained on, at most as many as it has.

    Args:
        model: an L2P model directory.
        train: the run's settings.
        images: how many.
        multiple: of which the sides of an image are, px: the patch.
        device, dtype: as of `held_out_loss`.
    """
    x_0, prompts = first_images(train, multiple=multiple, wanted=lambda pixels: images)
    pipeline = load_pipeline(model, device=device, dtype=dtype)
    conditioning = pipeline.encode(prompts, max_sequence_length=train.max_sequence_length)
    return _mean_loss(pipeline.transformer, x_0, conditioning, SIGMAS, 32, device)


def _mean_loss(
    model: Any,
    x_0: Tensor,
    conditioning: Sequence[Any],
    sigmas: Sequence[float],
    batch_size: int,
    device: str,
) -> float:
    noise = draw_noise(generators_of(len(x_0), range(len(x_0))), *x_0.shape[-2:])
    total = 0.0
    for start in range(0, len(x_0), batch_size):
        part = slice(start, start + batch_size)
        for value in sigmas:
            pixels, sigma = x_0[part].to(device), torch.full((len(x_0[part]),), value, device=device)
            losses = l2p_loss(model, pixels, noise[part].to(device), sigma, conditioning[part])
            total += float(losses.sum())
    return total / (len(x_0) * len(sigmas))


def _pixels(path: Path) -> Tensor:
    """Return (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(open_picture(path))).permute(2, 0, 1).float() / 127.5 - 1

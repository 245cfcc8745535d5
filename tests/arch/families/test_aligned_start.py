"""Before any training an aligned model of every family has the loss that its surgery measured, whatever size
the last block gives the residual stream."""

from typing import Any

import pytest
import torch
from l2p_arch.surgery.alignment import fit_filters
from torch import Tensor


def scaled(size: float) -> Any:
    """A hook that multiplies all that a block hands on: its tokens, and the text's where it has both."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(size * part if isinstance(part, Tensor) else part for part in output)
        return size * output

    return hook


def eq_5(model: Any, images: Tensor, level: float, sample: Any) -> float:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    x_t = (1 - level) * images + level * noise
    with torch.no_grad():
        velocity = model(x_t, torch.full((len(images),), level), sample * len(images))
    return float((velocity - (noise - images)).square().mean())


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_the_start_has_its_measured_eq_5_at_any_size_of_the_residual_stream(tiny: Any, size: float) -> None:
    model, sample = tiny.aligned_model(), tiny.samples(6)
    model.get_submodule(model.block_names()[-1]).register_forward_hook(scaled(size))
    colours = torch.rand(12, 3, 3, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    images = torch.nn.functional.interpolate(colours, size=(24, 24), mode="bilinear")

    @torch.no_grad()
    def predict(x_t: Tensor, sigma: Tensor, first: int) -> Tensor:
        latents: Tensor = model.predicted_latents(x_t, sigma, sample * len(x_t))[0]
        return latents

    told = fit_filters(model.aligner, images, predict, sigmas=(0.1, 0.5, 0.9))
    torch.nn.init.zeros_(model.detailer_head.out_conv.weight)
    torch.nn.init.zeros_(model.detailer_head.out_conv.bias)
    for level, measured in told.items():
        assert measured < 1.1 + 1 / 3  # no worse than knowing nothing
        assert eq_5(model, images, level, sample) == pytest.approx(measured, rel=0.15)
    seen: list[Tensor] = []
    model.detailer_head.register_forward_hook(lambda module, args, output: seen.append(args[1]))
    torch.nn.init.normal_(model.detailer_head.out_conv.weight, std=0.1)
    assert eq_5(model, images, 0.5, sample) < 2 * told[0.5] + 0.1  # what the head adds is bounded, too
    assert float(seen[0].square().mean()) == pytest.approx(1, rel=0.02)

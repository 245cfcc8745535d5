"""A number for the guidance, in every family: it changes nothing until it is trained, and then each sample
hears its own."""

from typing import Any

import pytest
import torch
from l2p_arch import L2PTransformer
from torch import Tensor


def inputs(tiny: Any, *scales: float | None) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Images, sigmas and texts of unequal length, each with its scale."""
    generator = torch.Generator().manual_seed(1)
    count = len(scales)
    samples: list[dict[str, Tensor]] = tiny.samples(*[3 + place % 2 for place in range(count)])
    for sample, scale in zip(samples, scales, strict=True):
        sample.pop("guidance", None)
        if scale is not None:
            sample["guidance"] = torch.tensor(scale)
    pixels = torch.randn(count, 3, 8, 12, generator=generator)
    return pixels, torch.rand(count, generator=generator), samples


def trained(model: L2PTransformer) -> L2PTransformer:
    """As if it had learned: an embedder without zeros, where there is one."""
    if model.guidance_embedder is not None:
        torch.nn.init.normal_(model.guidance_embedder.out.weight, std=0.5)
    return model


@pytest.mark.parametrize("recipe", ["paper", "aligned"])
@torch.no_grad()
def test_an_untrained_number_changes_nothing_bit_by_bit(tiny: Any, recipe: str) -> None:
    model: Any = tiny.model() if recipe == "paper" else tiny.aligned_model()
    own = bool(model.trunk.config.get("guidance_embeds"))
    pixels, sigma, samples = inputs(tiny, 1.0, 2.5, 3.0)
    wanted = model(pixels, sigma, samples)
    model.take_guidance(1, 4)
    assert torch.equal(model(pixels, sigma, samples), wanted)
    assert (model.guidance_embedder is None) == own


@torch.no_grad()
def test_every_sample_hears_its_own_number_in_any_company(tiny: Any) -> None:
    model: Any = tiny.model()
    model.take_guidance(1, 4)
    pixels, sigma, samples = inputs(tiny, 1.0, 3.5, 2.0, 1.0)
    together = trained(model)(pixels, sigma, samples)
    for place in range(4):
        alone = model(pixels[place : place + 1], sigma[place : place + 1], samples[place : place + 1])
        torch.testing.assert_close(together[place : place + 1], alone, rtol=1e-4, atol=1e-5)
    other = [{**sample, "guidance": torch.tensor(4.0)} for sample in samples]
    assert ((model(pixels, sigma, other) - together).abs().amax((1, 2, 3)) > 1e-5).all()


@torch.no_grad()
def test_a_sample_without_a_number_has_the_lowest(tiny: Any) -> None:
    model: Any = tiny.model()
    model.take_guidance(1.5, 4)
    given, left_out = inputs(tiny, 1.5, 1.5), inputs(tiny, None, None)
    assert torch.equal(trained(model)(*given), model(*left_out))

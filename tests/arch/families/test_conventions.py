"""Each family's own time and sign, and the sources that are refused."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from l2p_arch import FAMILIES, ArchError
from l2p_arch.families import find_family
from l2p_arch.families.ddpm import ddpm_step, to_ddpm
from l2p_arch.source_formats import SOURCE_FORMATS, find_source_format
from torch import Tensor

TIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "flux": lambda sigma: sigma * 1000,
    "flux with guidance": lambda sigma: sigma * 1000,
    "qwen-image": lambda sigma: sigma,
    "sd3": lambda sigma: sigma * 1000,
    "lumina2": lambda sigma: 1 - sigma,
    "flux2": lambda sigma: sigma * 1000,
    "sana": lambda sigma: sigma * 1000 * 0.5,
    "pixart-sigma": ddpm_step,
}


@pytest.mark.parametrize("tiny", TIMES, indirect=True)
def test_the_time_is_not_rounded_in_bfloat16(tiny: Any) -> None:
    model = tiny.model().to(torch.bfloat16)
    seen: list[Tensor] = []
    for module in model.trunk.modules():
        if type(module).__name__ == "Timesteps":
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    sigma = torch.tensor([0.1234567])
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 8), sigma, tiny.samples(3))
    assert torch.equal(seen[0], TIMES[tiny.name](sigma))


@pytest.mark.parametrize("tiny", ["prx"], indirect=True)
def test_prx_embeds_the_time_before_it_rounds(tiny: Any) -> None:
    model = tiny.model().to(torch.bfloat16)
    seen: list[Tensor] = []
    model.trunk.time_in.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    sigma = torch.tensor([0.1234567])
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 8), sigma, tiny.samples(3))
    exact, rounded = (
        get_timestep_embedding(time, 256, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000).bfloat16()
        for time in (sigma, sigma.bfloat16().float())
    )
    assert torch.equal(seen[0], exact)
    assert not torch.equal(exact, rounded)


def test_the_raw_output_becomes_the_velocity_by_the_familys_sign(tiny: Any) -> None:
    model = tiny.model()
    torch.nn.init.zeros_(model.detailer_head.out_conv.weight)
    torch.nn.init.constant_(model.detailer_head.out_conv.bias, 0.25)
    velocity = model(torch.zeros(1, 3, 8, 8), torch.tensor([0.5]), tiny.samples(3))
    assert torch.equal(velocity, torch.full((1, 3, 8, 8), 0.25 * model.source_family.velocity_sign))


def test_x_t_lies_where_diffusers_ddpm_scheduler_would_put_it() -> None:
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    steps = torch.arange(1000)
    kept = scheduler.alphas_cumprod
    sigma = (1 - kept).sqrt() / (kept.sqrt() + (1 - kept).sqrt())
    x_0, noise = torch.randn(2, 1000, 1, 2, 2)
    x_t = (1 - sigma).view(-1, 1, 1, 1) * x_0 + sigma.view(-1, 1, 1, 1) * noise
    expected = scheduler.add_noise(x_0, noise, steps)
    torch.testing.assert_close(to_ddpm(x_t, sigma), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ddpm_step(sigma), steps.float(), rtol=0, atol=0.05)
    between = (sigma[300] + sigma[301]) / 2
    torch.testing.assert_close(ddpm_step(between[None]), torch.tensor([300.5]), rtol=0, atol=0.05)
    assert ddpm_step(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


PUBLISHED_PIXART: dict[str, Any] = {  # PixArt-Sigma-XL-2-1024-MS, whose class is named Transformer2DModel
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "double_self_attention": False,
    "in_channels": 4,
    "interpolation_scale": 2,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 128,
    "use_linear_projection": False,
}


def test_every_family_has_a_format_and_every_format_a_family() -> None:
    assert list(FAMILIES) == list(SOURCE_FORMATS)
    assert all(name == family.name == SOURCE_FORMATS[name].family for name, family in FAMILIES.items())


def test_the_published_pixart_sigma_is_the_family_in_full() -> None:
    family = find_family(find_source_format("Transformer2DModel").family)
    assert family.name == "pixart-sigma"
    with torch.device("meta"):
        trunk = family.build_trunk(PUBLISHED_PIXART, 768)
    kept = sum(p.numel() for name, p in trunk.named_parameters() if not family.source_format.is_end(name))
    latent_ends = 1152 * (16 + 1) + 2 * 1152 + 32 * (1152 + 1)
    file = 2_443_492_488  # bytes of its diffusion_pytorch_model.safetensors, in float32
    header = file - 4 * (kept + latent_ends)
    assert 0 < header < 100_000


@pytest.mark.parametrize(
    ("name", "config", "complaint"),
    [
        ("pixart-sigma", {"use_additional_conditions": True}, "this is PixArt-alpha"),
        ("pixart-sigma", {"norm_type": "ada_norm_zero"}, "no valid PixArtTransformer2DModel config"),  # DiT
        ("prx", {"bottleneck_size": 256, "resolution_embeds": True}, "this is PRXPixel"),
    ],
)
def test_a_close_relative_is_refused_by_its_name(name: str, config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ArchError, match=complaint), torch.device("meta"):
        FAMILIES[name].build_trunk({**PUBLISHED_PIXART, **config}, 768)

"""Every family's trunk is diffusers' own: its latent ends put back give bit-equal outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from einops import rearrange
from l2p_arch.families.ddpm import ddpm_step, to_ddpm
from l2p_arch.patchify import patches_to_pixels, pixels_to_patches
from torch import Tensor

Sample = dict[str, Tensor]
CHANNEL_FIRST = "b (h w) (c py px) -> b c (h py) (w px)"
CHANNEL_LAST = "b (h w) (py px c) -> b c (h py) (w px)"
UNFOLDS = {
    "b c (h py) (w px) -> b h w (c py px)": "b (c py px) h w -> b c (h py) (w px)",
    "b c (h py) (w px) -> b h w (py px c)": "b (py px c) h w -> b c (h py) (w px)",
}


@dataclass(frozen=True, kw_only=True)
class Ends:
    """How diffusers' own pipeline calls the family's transformer, and how the transformer ends."""

    call: Callable[[Any, Tensor, Tensor, Sample], Tensor]
    """(source, latents (1, C, h, w), sigma (1,), sample) -> the source's output as latents."""
    finish: Callable[[Any, Tensor, Tensor, Sample], Tensor]
    """(source, last tokens (1, N, D), sigma, sample) -> its own final norm and projection, (1, N, C*p*p)."""
    unfold: str


def pack(latents: Tensor) -> Tensor:
    return rearrange(latents, "b c (h py) (w px) -> b (h w) (c py px)", py=2, px=2)


def unpack(tokens: Tensor, latents: Tensor) -> Tensor:
    return rearrange(tokens, CHANNEL_FIRST, h=latents.shape[-2] // 2, py=2, px=2)


def batched(sample: Sample) -> Sample:
    return {key: value[None] for key, value in sample.items()}


def call_flux(source: Any, latents: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    height, width = latents.shape[-2] // 2, latents.shape[-1] // 2
    ids = diffusers.FluxPipeline._prepare_latent_image_ids(1, height, width, "cpu", torch.float32)
    text = batched(sample)
    tokens = source(
        hidden_states=pack(latents),
        encoder_hidden_states=text["text"],
        pooled_projections=text["pooled"],
        timestep=sigma,
        guidance=text.get("guidance"),
        img_ids=ids,
        txt_ids=torch.zeros(len(sample["text"]), 3),
        return_dict=False,
    )[0]
    return unpack(tokens, latents)


def finish_flux(source: Any, tokens: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    text = batched(sample)
    guidance = [text["guidance"] * 1000] if "guidance" in text else []
    time = source.time_text_embed(sigma * 1000, *guidance, text["pooled"])
    return source.proj_out(source.norm_out(tokens, time))


def call_qwen(source: Any, latents: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    tokens = source(
        hidden_states=pack(latents),
        encoder_hidden_states=sample["text"][None],
        timestep=sigma,
        img_shapes=[[(1, latents.shape[-2] // 2, latents.shape[-1] // 2)]],
        return_dict=False,
    )[0]
    return unpack(tokens, latents)


def finish_qwen(source: Any, tokens: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    return source.proj_out(source.norm_out(tokens, source.time_text_embed(sigma, tokens)))


def call_sd3(source: Any, latents: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    text = batched(sample)
    return source(
        hidden_states=latents,
        encoder_hidden_states=text["text"],
        pooled_projections=text["pooled"],
        timestep=sigma * 1000,
        return_dict=False,
    )[0]


def finish_sd3(source: Any, tokens: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    time = source.time_text_embed(sigma * 1000, sample["pooled"][None])
    return source.proj_out(source.norm_out(tokens, time))


def call_flux2(source: Any, latents: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    pipeline = diffusers.Flux2Pipeline
    folded = rearrange(latents, "b c (h py) (w px) -> b (c py px) h w", py=2, px=2)
    text = batched(sample)
    tokens = source(
        hidden_states=pack(latents),
        encoder_hidden_states=text["text"],
        timestep=sigma,
        guidance=text["guidance"],
        img_ids=pipeline._prepare_latent_ids(folded),
        txt_ids=pipeline._prepare_text_ids(text["text"]),
        return_dict=False,
    )[0]
    return unpack(tokens, latents)


def finish_flux2(source: Any, tokens: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    time = source.time_guidance_embed(sigma * 1000, sample["guidance"][None] * 1000)
    return source.proj_out(source.norm_out(tokens, time))


def call_lumina2(source: Any, latents: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    text = sample["text"][None]
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    return source(latents, 1 - sigma, text, mask, return_dict=False)[0]


def finish_lumina2(source: Any, tokens: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    time, _ = source.time_caption_embed(tokens, 1 - sigma, sample["text"][None])
    return source.norm_out(tokens, time)


def call_sana(source: Any, latents: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    return source(latents, sample["text"][None], sigma * 1000 * 0.5, return_dict=False)[0]


def finish_sana(source: Any, tokens: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    _, time = source.time_embed(sigma * 1000 * 0.5, batch_size=1, hidden_dtype=tokens.dtype)
    return source.proj_out(source.norm_out(tokens, time, source.scale_shift_table))


def call_prx(source: Any, latents: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    return source(latents, sigma, sample["text"][None], return_dict=False)[0]


def finish_prx(source: Any, tokens: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    return source.final_layer(tokens, source._compute_timestep_embedding(sigma, tokens.dtype))


def call_pixart(source: Any, latents: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    # What x_t is to a model trained by DDPM is held against diffusers' DDPMScheduler in test_conventions.py.
    x = to_ddpm(latents, sigma)
    return source(x, sample["text"][None], ddpm_step(sigma), return_dict=False)[0]


def finish_pixart(source: Any, tokens: Tensor, sigma: Tensor, sample: Sample) -> Tensor:
    _, time = source.adaln_single(ddpm_step(sigma), None, batch_size=1, hidden_dtype=tokens.dtype)
    shift, scale = (source.scale_shift_table[None] + time[:, None]).chunk(2, dim=1)
    return source.proj_out(source.norm_out(tokens) * (1 + scale) + shift)


ENDS = {
    "flux": Ends(call=call_flux, finish=finish_flux, unfold=CHANNEL_FIRST),
    "qwen-image": Ends(call=call_qwen, finish=finish_qwen, unfold=CHANNEL_FIRST),
    "sd3": Ends(call=call_sd3, finish=finish_sd3, unfold=CHANNEL_LAST),
    "lumina2": Ends(call=call_lumina2, finish=finish_lumina2, unfold=CHANNEL_LAST),
    "flux2": Ends(call=call_flux2, finish=finish_flux2, unfold=CHANNEL_FIRST),
    "sana": Ends(call=call_sana, finish=finish_sana, unfold=CHANNEL_LAST),
    "prx": Ends(call=call_prx, finish=finish_prx, unfold=CHANNEL_FIRST),
    "pixart-sigma": Ends(call=call_pixart, finish=finish_pixart, unfold=CHANNEL_LAST),
}


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_with_the_latent_ends_put_back_the_output_is_bit_equal_to_diffusers(
    tiny: Any, grid: tuple[int, int]
) -> None:
    ends, source, sample = ENDS[tiny.family.name], tiny.source(), tiny.samples(7)
    latents, sigma = torch.randn(1, 4, 2 * grid[0], 2 * grid[1]), torch.tensor([0.37])
    with torch.no_grad():
        expected = ends.call(source, latents, sigma, sample[0])
        folded = rearrange(latents, tiny.family.latent_embedder(source.config).fold, py=2, px=2)
        features = tiny.family.run(tiny.trunk(source), folded.permute(0, 3, 1, 2), sigma, sample)
        tokens = rearrange(features, "b d h w -> b (h w) d")
        finished = ends.finish(source, tokens, sigma, sample[0])
        actual = rearrange(finished, ends.unfold, h=grid[0], py=2, px=2)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_the_whole_trunk_answers_as_diffusers_does_and_hands_out_the_last_tokens(
    tiny: Any, grid: tuple[int, int]
) -> None:
    family, source, sample = tiny.family, tiny.source(), tiny.samples(7)
    ends = ENDS[family.name]
    latents, sigma = torch.randn(1, 4, 2 * grid[0], 2 * grid[1]), torch.tensor([0.37])
    fold = family.latent_embedder(source.config).fold
    with torch.no_grad():
        expected = ends.call(source, latents, sigma, sample[0])[:, :4]  # PixArt also predicts a variance
        folded = rearrange(latents, fold, py=2, px=2).permute(0, 3, 1, 2)
        both = family.run(tiny.whole_trunk(source), folded, sigma, sample)
        features = family.run(tiny.trunk(source), folded, sigma, sample)
    answer = both[:, family.answer_order(source.config)]
    assert torch.equal(answer.permute(0, 2, 3, 1), rearrange(expected, fold, py=2, px=2))
    assert torch.equal(both[:, family.answer_channels(source.config) :], features)


def test_an_aligned_model_asks_the_source_at_its_own_noise_level_for_the_latent(tiny: Any) -> None:
    """On pixels that are s Q z + mean the trunk sees z_t at sigma', exactly, and z_hat is the source's."""
    family, source, sample = tiny.family, tiny.source(), tiny.samples(6)
    model, ends = tiny.aligned_model(), ENDS[tiny.family.name]
    aligner: Any = model.aligner
    fold = family.latent_embedder(source.config).fold
    latents, noise, sigma = torch.randn(1, 4, 8, 6), torch.randn(1, 3, 16, 12), torch.tensor([0.6])
    folded = rearrange(latents, fold, py=2, px=2).permute(0, 3, 1, 2)
    centred = folded - aligner.latent_mean[:, None, None]
    patches = (
        1.7 * torch.einsum("xr,brhw->bxhw", aligner.subspace, centred) + aligner.pixel_mean[:, None, None]
    )
    x_t = 0.4 * patches_to_pixels(patches, 4) + 0.6 * noise
    source_sigma = 0.6 / (1.7 * 0.4 + 0.6)
    latent_noise = torch.einsum("xr,bxhw->brhw", aligner.subspace, pixels_to_patches(noise, 4))
    with torch.no_grad():
        z_t, told = aligner.to_latents(x_t, sigma)
        answer = ends.call(source, rearrange(z_t, UNFOLDS[fold], py=2, px=2), told, sample[0])[:, :4]
        answer = rearrange(answer, fold, py=2, px=2).permute(0, 3, 1, 2)
        expected = family.predicted_latent(z_t, told, family.velocity_sign * answer)
        actual, _ = model.predicted_latents(x_t, sigma, sample)
    torch.testing.assert_close(told, torch.tensor([source_sigma]))
    seen = (1 - source_sigma) * folded + source_sigma * latent_noise
    torch.testing.assert_close(z_t, seen, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual, expected)

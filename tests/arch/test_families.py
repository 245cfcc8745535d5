"""Every family's trunk is diffusers' own: its latent ends put back give bit-equal outputs, in its own
conventions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from einops import rearrange
from l2p_arch import FAMILIES, L2PTransformer
from torch import Tensor

Sample = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny source and how diffusers' own pipeline calls it."""

    config: dict[str, Any]
    sample: Callable[[int, torch.Generator], Sample]
    """Text length -> the conditioning of one sample."""
    call: Callable[[Any, Tensor, Tensor, Sample], Tensor]
    """(source, latents (1, C, h, w), sigma (1,), sample) -> the source's output as latents."""
    finish: Callable[[Any, Tensor, Tensor, Sample], Tensor]
    """(source, last tokens (1, N, D), sigma, sample) -> its own final norm and projection, (1, N, C*p*p)."""
    unfold: str = "b (h w) (c py px) -> b c (h py) (w px)"


HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}


def randn(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator)


def pack(latents: Tensor) -> Tensor:
    return rearrange(latents, "b c (h py) (w px) -> b (h w) (c py px)", py=2, px=2)


def unpack(tokens: Tensor, latents: Tensor) -> Tensor:
    return rearrange(tokens, "b (h w) (c py px) -> b c (h py) (w px)", h=latents.shape[-2] // 2, py=2, px=2)


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


FLUX: dict[str, Any] = {
    **HEADS,
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": [4, 6, 6],
}
CASES = {
    "flux": Case(
        config={**FLUX, "guidance_embeds": False},
        sample=lambda n, g: {"text": randn(n, 12, generator=g), "pooled": randn(10, generator=g)},
        call=call_flux,
        finish=finish_flux,
    ),
    "flux with guidance": Case(
        config={**FLUX, "guidance_embeds": True},
        sample=lambda n, g: {
            "text": randn(n, 12, generator=g),
            "pooled": randn(10, generator=g),
            "guidance": torch.tensor(4.0),
        },
        call=call_flux,
        finish=finish_flux,
    ),
    "qwen-image": Case(
        config={
            **HEADS,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 12,
            "axes_dims_rope": [4, 6, 6],
        },
        sample=lambda n, g: {"text": randn(n, 12, generator=g)},
        call=call_qwen,
        finish=finish_qwen,
    ),
    "sd3": Case(
        config={
            **HEADS,
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "joint_attention_dim": 12,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 12,
            "dual_attention_layers": [0],
            "qk_norm": "rms_norm",
        },
        sample=lambda n, g: {"text": randn(n, 12, generator=g), "pooled": randn(10, generator=g)},
        call=call_sd3,
        finish=finish_sd3,
        unfold="b (h w) (py px c) -> b c (h py) (w px)",
    ),
    "lumina2": Case(
        config={
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": [4, 4, 4],
            "axes_lens": [8, 8, 8],  # shorter than some texts and grids of these tests
            "cap_feat_dim": 12,
        },
        sample=lambda n, g: {"text": randn(n, 12, generator=g)},
        call=call_lumina2,
        finish=finish_lumina2,
        unfold="b (h w) (py px c) -> b c (h py) (w px)",
    ),
    "flux2": Case(
        config={
            **HEADS,
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 12,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": [4, 4, 4, 4],
        },
        sample=lambda n, g: {"text": randn(n, 12, generator=g), "guidance": torch.tensor(2.5)},
        call=call_flux2,
        finish=finish_flux2,
    ),
    "sana": Case(
        config={
            **HEADS,
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 12,
            "timestep_scale": 0.5,
        },
        sample=lambda n, g: {"text": randn(n, 12, generator=g)},
        call=call_sana,
        finish=finish_sana,
        unfold="b (h w) (py px c) -> b c (h py) (w px)",
    ),
}


def tiny_source(name: str) -> Any:
    torch.manual_seed(0)
    family = FAMILIES[name.split()[0]]
    return getattr(diffusers, family.transformer_class)(**CASES[name].config).eval()


def trunk_of(name: str, source: Any) -> Any:
    """Our trunk, on latent patches: the blocks as surgery takes them over, and the source's own embedder."""
    family = FAMILIES[name.split()[0]]
    layout = family.latent_embedder(source.config)
    state = {key: value for key, value in source.state_dict().items() if not family.is_source_end(key)}
    weight = source.state_dict()[f"{layout.name}.weight"].flatten(1)
    trunk = family.build_trunk(source.config, weight.shape[1]).eval()
    wanted = trunk.state_dict()[f"{family.embedder}.weight"].shape
    state[f"{family.embedder}.weight"] = weight.reshape(wanted)
    if f"{layout.name}.bias" in source.state_dict():
        state[f"{family.embedder}.bias"] = source.state_dict()[f"{layout.name}.bias"]
    trunk.load_state_dict(state)
    return trunk


def tiny_model(name: str) -> L2PTransformer:
    torch.manual_seed(0)
    return L2PTransformer(name.split()[0], CASES[name].config, patch_size=4, head_channels=(8, 8)).eval()


def samples(name: str, *lengths: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(5)
    return [CASES[name].sample(length, generator) for length in lengths]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("name", CASES)
def test_with_the_latent_ends_put_back_the_output_is_bit_equal_to_diffusers(
    name: str, grid: tuple[int, int]
) -> None:
    case, source = CASES[name], tiny_source(name)
    family = FAMILIES[name.split()[0]]
    latents, sigma, sample = (
        torch.randn(1, 4, 2 * grid[0], 2 * grid[1]),
        torch.tensor([0.37]),
        samples(name, 7),
    )
    with torch.no_grad():
        expected = case.call(source, latents, sigma, sample[0])
        folded = rearrange(latents, family.latent_embedder(source.config).fold, py=2, px=2)
        features = family.run(trunk_of(name, source), folded.permute(0, 3, 1, 2), sigma, sample)
        tokens = rearrange(features, "b d h w -> b (h w) d")
        finished = case.finish(source, tokens, sigma, sample[0])
        actual = rearrange(finished, case.unfold, h=grid[0], py=2, px=2)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_unequal_texts_equals_one_at_a_time(name: str) -> None:
    model, conditioning = tiny_model(name), samples(name, 3, 9, 3, 5)
    pixels, sigma = torch.randn(4, 3, 12, 20), torch.tensor([0.1, 0.5, 0.7, 1.0])
    with torch.no_grad():
        together = model(pixels, sigma, conditioning)
        alone = [model(pixels[i : i + 1], sigma[i : i + 1], conditioning[i : i + 1]) for i in range(4)]
    assert together.shape == pixels.shape
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_all_but_idle_parameters_get_gradients_with_and_without_checkpointing(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(name).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(1)
        model(torch.randn(1, 3, 8, 8), torch.tensor([0.3]), samples(name, 4)).square().mean().backward()
        idle = {key for key, parameter in model.named_parameters() if parameter.grad is None}
        stated = tuple(f"{prefix}." for prefix in model.idle_names())
        assert idle == {key for key, _ in model.named_parameters() if key.startswith(stated)}
        gradients.append(model.trunk.get_submodule(model.source_family.embedder).weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", CASES)
def test_the_raw_output_becomes_the_velocity_by_the_familys_sign(name: str) -> None:
    model = tiny_model(name)
    torch.nn.init.zeros_(model.detailer_head.out_conv.weight)
    torch.nn.init.constant_(model.detailer_head.out_conv.bias, 0.25)
    velocity = model(torch.zeros(1, 3, 8, 8), torch.tensor([0.5]), samples(name, 3))
    assert torch.equal(velocity, torch.full((1, 3, 8, 8), 0.25 * model.source_family.velocity_sign))


@pytest.mark.parametrize("name", CASES)
def test_the_time_is_not_rounded_in_bfloat16(name: str) -> None:
    model = tiny_model(name).to(torch.bfloat16)
    seen: list[Tensor] = []
    for module in model.trunk.modules():
        if type(module).__name__ == "Timesteps":
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    sigma = torch.tensor([0.1234567])
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 8), sigma, samples(name, 3))
    expected = {"qwen-image": sigma, "lumina2": 1 - sigma, "sana": sigma * 1000 * 0.5}
    assert torch.equal(seen[0], expected.get(name, sigma * 1000))


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_listed_in_the_order_in_which_they_run(name: str) -> None:
    model = tiny_model(name)
    ran: list[str] = []
    for block in model.block_names():
        model.get_submodule(block).register_forward_pre_hook(lambda *_, block=block: ran.append(block))
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 8), torch.tensor([0.3]), samples(name, 4))
    assert ran == model.block_names()


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_shallow_modules_cover_every_parameter_once(name: str) -> None:
    model = tiny_model(name)
    prefixes = [f"{prefix}." for prefix in model.block_names() + model.shallow_names()]
    for key, _ in model.named_parameters():
        assert sum(f"{key}.".startswith(prefix) for prefix in prefixes) == 1, key


@pytest.mark.parametrize("name", CASES)
def test_compiled_blocks_are_captured_whole_and_give_the_same_velocity(name: str) -> None:
    model = tiny_model(name)
    inputs = (torch.randn(2, 3, 16, 8), torch.tensor([0.2, 0.7]), samples(name, 3, 9))
    torch.compiler.reset()
    with torch.no_grad():
        eager = model(*inputs)
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
        torch.testing.assert_close(model(*inputs), eager)
    torch.compiler.reset()


# Lumina2's own forward fetches lengths from the mask, which meta tensors do not have.
@pytest.mark.parametrize("name", [name for name in CASES if name != "lumina2"])
def test_a_forward_stays_on_the_device_of_its_inputs(name: str) -> None:
    model = tiny_model(name).to("meta")
    conditioning = [{k: v.to("meta") for k, v in sample.items()} for sample in samples(name, 9, 9)]
    velocity = model(torch.empty(2, 3, 16, 8, device="meta"), torch.empty(2, device="meta"), conditioning)
    assert velocity.device.type == "meta"
    assert velocity.shape == (2, 3, 16, 8)

"""FLUX.2: as FLUX.1, with one text stream, four position axes and modulation shared by all blocks of a kind.

Conventions: the time passed is sigma, and the raw output is the velocity. Conditioning: {"text": (L, D),
optionally "guidance": ()}. The shared modulation lies outside the blocks, so it trains with the shallow
modules.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from l2p_arch.families.base import (
    PROBE,
    Conditioning,
    Family,
    LatentEmbedder,
    before_prompt,
    room_in,
    strip_norm_and_projection,
    width_of_heads,
)
from l2p_arch.families.running import (
    embedded_guidance,
    exact_time,
    hear_exact_time,
    in_groups_of_equal_text,
    source_pipeline,
    stacked,
    to_grid,
    to_tokens,
)

DEFAULT_GUIDANCE = 4.0


def _run(trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
    grid = patches.shape[-2:]
    text = stacked(conditioning, "text", patches)
    zero = torch.zeros(1, dtype=torch.long)
    rows, columns, places = (torch.arange(count) for count in (*grid, text.shape[1]))
    tokens = trunk(
        hidden_states=to_tokens(patches),
        encoder_hidden_states=text,
        timestep=exact_time(sigma, 1000, patches),
        guidance=embedded_guidance(trunk, conditioning, DEFAULT_GUIDANCE, sigma),
        img_ids=torch.cartesian_prod(zero, rows, columns, zero).to(patches.device),
        txt_ids=torch.cartesian_prod(zero, zero, zero, places).to(patches.device),
        return_dict=False,
    )[0]
    return to_grid(tokens, grid)


def _hear_time(trunk: Any) -> None:
    hear_exact_time(trunk.time_guidance_embed.time_proj)


def _is_klein(components: Mapping[str, Any]) -> bool:
    return type(components["text_encoder"]).__name__.startswith("Qwen")


def _encode_text(
    components: Mapping[str, Any], prompts: Sequence[str], *, device: torch.device, max_sequence_length: int
) -> list[Conditioning]:
    name = "Flux2KleinPipeline" if _is_klein(components) else "Flux2Pipeline"
    pipeline = source_pipeline(name, components)
    text, _ = pipeline.encode_prompt(list(prompts), device=device, max_sequence_length=max_sequence_length)
    return [{"text": sample} for sample in text]


def _text_room(components: Mapping[str, Any], most: int, negative: bool) -> tuple[Any, int]:
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    tokenizer = components["tokenizer"]
    if tokenizer is None:
        return None, 0
    if _is_klein(components):
        message: Any = [{"role": "user", "content": PROBE}]
        options = {"add_generation_prompt": True, "enable_thinking": False}
    else:
        message, options = format_input([PROBE], SYSTEM_MESSAGE)[0], {"add_generation_prompt": False}
    text = tokenizer.apply_chat_template(message, tokenize=False, **options)
    return room_in(tokenizer, most, before_prompt(text))


def _encode_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Return the VAE's latents, normalised per channel of the folded 2x2 patch by the statistics that it
    carries.
    """
    latents = vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float()
    folded = rearrange(latents, "b c (h py) (w px) -> b (c py px) h w", py=2, px=2)
    mean = vae.bn.running_mean.float()[:, None, None]
    std = (vae.bn.running_var.float() + vae.config.batch_norm_eps).sqrt()[:, None, None]
    return rearrange((folded - mean) / std, "b (c py px) h w -> b c (h py) (w px)", py=2, px=2)


def _dynamic_shift(image_tokens: int, steps: int) -> float:
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    return compute_empirical_mu(image_tokens, steps)


FLUX2 = Family(
    name="flux2",
    embedder="x_embedder",
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    shallow=(
        "x_embedder",
        "context_embedder",
        "time_guidance_embed",
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
    ),
    time_embedding="time_guidance_embed.timestep_embedder",
    velocity_sign=1,
    feature_channels=width_of_heads,
    pixel_config=lambda config, channels: {**config, "in_channels": channels, "out_channels": None},
    adapt=_hear_time,
    strip_output=strip_norm_and_projection,
    run=in_groups_of_equal_text(_run),
    text_room=_text_room,
    padded_text=0,
    encode_text=_encode_text,
    dynamic_shift=_dynamic_shift,
    encode_latents=_encode_latents,
    latent_embedder=lambda config: LatentEmbedder(name="x_embedder", patch_size=2, packed=True),
)

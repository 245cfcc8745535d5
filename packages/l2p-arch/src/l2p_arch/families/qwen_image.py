"""Qwen-Image: double-stream blocks over image and masked text.

Conventions: the time passed is sigma, and the raw output is the velocity. Conditioning: {"text": (L, 3584)}.
The last block updates the text as well, though nobody reads it: those weights never get a gradient.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2p_arch.families.base import (
    Conditioning,
    Family,
    LatentEmbedder,
    room_in,
    strip_norm_and_projection,
    width_of_heads,
)
from l2p_arch.families.running import (
    exact_time,
    hear_exact_time,
    padded,
    source_pipeline,
    to_grid,
    to_tokens,
)


def _run(trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
    grid = patches.shape[-2:]
    text, mask = padded(conditioning, "text", patches)
    tokens = trunk(
        hidden_states=to_tokens(patches),
        encoder_hidden_states=text,
        encoder_hidden_states_mask=mask,
        timestep=exact_time(sigma, 1, patches),
        img_shapes=[[(1, grid[0], grid[1])]] * len(patches),
        return_dict=False,
    )[0]
    return to_grid(tokens, grid)


def _hear_time(trunk: Any) -> None:
    hear_exact_time(trunk.time_text_embed.time_proj)


def _encode_text(
    components: Mapping[str, Any], prompts: Sequence[str], *, device: torch.device, max_sequence_length: int
) -> list[Conditioning]:
    pipeline = source_pipeline("QwenImagePipeline", components)
    text, mask = pipeline.encode_prompt(list(prompts), device=device, max_sequence_length=max_sequence_length)
    if mask is None:
        return [{"text": sample} for sample in text]
    return [{"text": sample[keep.bool()]} for sample, keep in zip(text, mask, strict=True)]


def _encode_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Return the video VAE's latents of one frame, normalised per channel."""
    latents = vae.encode(pixels.to(vae.dtype).unsqueeze(2)).latent_dist.mode().squeeze(2).float()
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents - mean) / std


def _text_room(components: Mapping[str, Any], most: int, negative: bool) -> tuple[Any, int]:
    """Return the room behind what stands before the prompt: its 34 tokens are encoded, and dropped again; the
    tokenizer stops 1024 behind them."""
    pipeline = source_pipeline("QwenImagePipeline", components)
    before = pipeline.prompt_template_encode.split("{}")[0]
    dropped = pipeline.prompt_template_encode_start_idx
    return room_in(components["tokenizer"], min(most, pipeline.tokenizer_max_length) + dropped, before)


QWEN_IMAGE = Family(
    name="qwen-image",
    embedder="img_in",
    block_lists=("transformer_blocks",),
    shallow=("img_in", "txt_norm", "txt_in", "time_text_embed"),
    time_embedding="time_text_embed.timestep_embedder",
    velocity_sign=1,
    idle=("transformer_blocks.-1.attn.to_add_out", "transformer_blocks.-1.txt_mlp"),
    feature_channels=width_of_heads,
    pixel_config=lambda config, channels: {**config, "in_channels": channels, "patch_size": 1},
    adapt=_hear_time,
    strip_output=strip_norm_and_projection,
    run=_run,
    encode_text=_encode_text,
    text_room=_text_room,
    encode_latents=_encode_latents,
    latent_embedder=lambda config: LatentEmbedder(name="img_in", patch_size=2, packed=True),
)

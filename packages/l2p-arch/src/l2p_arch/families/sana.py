"""SANA: linear attention over image tokens, cross-attention to masked text, positions from convolutions
alone.

Conventions: the time passed is 1000 sigma times the config's timestep_scale, and the raw output is the
velocity. Conditioning: {"text": (L, D)}. The VAE shrinks 32-fold: patch 32 keeps the source's token grid.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l2p_arch.families.base import (
    IN_ROWS,
    Conditioning,
    Family,
    LatentEmbedder,
    room_in,
    strip_norm_and_projection,
    width_of_heads,
)
from l2p_arch.families.running import embedded_guidance, padded, source_pipeline


def _pixel_config(source: Mapping[str, Any], patch_channels: int) -> dict[str, Any]:
    sample_size = source["sample_size"] // source["patch_size"]
    return {
        **source,
        "patch_size": 1,
        "sample_size": sample_size,
        "in_channels": patch_channels,
        "out_channels": 1,
    }


def _strip_output(trunk: Any) -> None:
    strip_norm_and_projection(trunk)
    trunk.register_parameter("scale_shift_table", None)  # of the final norm


def _run(trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
    text, mask = padded(conditioning, "text", patches)
    guidance = embedded_guidance(trunk, conditioning, 4.5, sigma)
    if guidance is not None:
        guidance = guidance * trunk.config.guidance_embeds_scale
    return trunk(
        hidden_states=patches,
        encoder_hidden_states=text,
        timestep=sigma * 1000 * trunk.config.timestep_scale,
        guidance=guidance,
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]


def _encode_text(
    components: Mapping[str, Any],
    prompts: Sequence[str],
    *,
    device: torch.device,
    max_sequence_length: int,
    negative: bool = False,
) -> list[Conditioning]:
    """Put the instruction before prompts, and not before negative ones."""
    pipeline = source_pipeline("SanaPipeline", components)
    instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    encoded = pipeline.encode_prompt(
        list(prompts),
        do_classifier_free_guidance=negative,
        negative_prompt=list(prompts),
        device=device,
        max_sequence_length=max_sequence_length,
        complex_human_instruction=instruction,
    )
    text, mask = encoded[2:] if negative else encoded[:2]
    return [{"text": sample[keep.bool()]} for sample, keep in zip(text, mask, strict=True)]


def _text_room(components: Mapping[str, Any], most: int, negative: bool) -> tuple[Any, int]:
    """Behind the instruction there is room for two tokens less than for a text alone."""
    tokenizer = components["tokenizer"]
    return room_in(tokenizer, most) if negative else (tokenizer, most - 2)


SANA = Family(
    name="sana",
    embedder="patch_embed.proj",
    block_lists=("transformer_blocks",),
    shallow=("patch_embed", "time_embed", "caption_projection", "caption_norm"),
    time_embedding="time_embed.emb.timestep_embedder",
    velocity_sign=1,
    feature_channels=width_of_heads,
    pixel_config=_pixel_config,
    strip_output=_strip_output,
    run=_run,
    text_tokens=300,
    text_room=_text_room,
    encode_text=_encode_text,
    encode_negative_text=partial(_encode_text, negative=True),
    latent_embedder=lambda config: LatentEmbedder(
        name="patch_embed.proj", patch_size=config["patch_size"], answer_fold=IN_ROWS
    ),
)

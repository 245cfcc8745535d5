"""Stable Diffusion 3 and 3.5: double-stream blocks over image and unmasked text, learned-size position table.

Conventions: the time passed is 1000 sigma, and the raw output is the velocity.
Conditioning: {"text": (L, 4096), "pooled": (2048,)}.
"""

from collections.abc import Mapping, Sequence
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
from l2p_arch.families.running import check_grid, in_groups_of_equal_text, source_pipeline, stacked


def _pixel_config(source: Mapping[str, Any], patch_channels: int) -> dict[str, Any]:
    # The position table is laid out over sample_size / patch_size tokens: both shrink together.
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
    trunk.out_channels = trunk.inner_dim  # makes the unpatchify of diffusers' forward a plain reshape


def _run(trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
    check_grid(patches.shape[-2:], trunk.config.pos_embed_max_size, "SD3")
    return trunk(
        hidden_states=patches,
        encoder_hidden_states=stacked(conditioning, "text", patches),
        pooled_projections=stacked(conditioning, "pooled", patches),
        timestep=sigma * 1000,
        return_dict=False,
    )[0]


def _encode_text(
    components: Mapping[str, Any], prompts: Sequence[str], *, device: torch.device, max_sequence_length: int
) -> list[Conditioning]:
    pipeline = source_pipeline("StableDiffusion3Pipeline", components)
    text, _, pooled, _ = pipeline.encode_prompt(
        list(prompts),
        None,
        None,
        device=device,
        do_classifier_free_guidance=False,
        max_sequence_length=max_sequence_length,
    )
    return [{"text": text[i], "pooled": pooled[i]} for i in range(len(prompts))]


def _text_room(components: Mapping[str, Any], most: int, negative: bool) -> tuple[Any, int]:
    """Let T5 read the whole text; where it is left out, the two CLIPs' 77 tokens are all that is read."""
    if components.get("text_encoder_3") is None:
        return room_in(components["tokenizer"], 77)
    return room_in(components["tokenizer_3"], most)


SD3 = Family(
    name="sd3",
    embedder="pos_embed.proj",
    block_lists=("transformer_blocks",),
    shallow=("pos_embed", "context_embedder", "time_text_embed"),
    time_embedding="time_text_embed.timestep_embedder",
    velocity_sign=1,
    feature_channels=width_of_heads,
    pixel_config=_pixel_config,
    strip_output=_strip_output,
    run=in_groups_of_equal_text(_run),
    text_tokens=256,
    pooled_text=True,
    text_room=_text_room,
    padded_text=77,
    encode_text=_encode_text,
    latent_embedder=lambda config: LatentEmbedder(
        name="pos_embed.proj", patch_size=config["patch_size"], answer_fold=IN_ROWS
    ),
)

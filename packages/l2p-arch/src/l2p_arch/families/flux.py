"""FLUX.1: double-stream blocks, then single-stream blocks over [text, image].

Conventions: the time passed is sigma, and the raw output is the velocity. FLUX.1 [dev] also embeds the
guidance it was distilled with. Conditioning: {"text": (L, 4096), "pooled": (768,), optionally "guidance":
()}; text has no mask.
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
    embedded_guidance,
    exact_time,
    hear_exact_time,
    in_groups_of_equal_text,
    source_pipeline,
    stacked,
    to_grid,
    to_tokens,
)

DEFAULT_GUIDANCE = 3.5


def position_ids(grid: Sequence[int], device: torch.device) -> Tensor:
    """Return (0, y, x) for every token, (h*w, 3)."""
    rows, columns = (torch.arange(side, device=device) for side in grid)
    ids = torch.cartesian_prod(rows, columns).reshape(-1, 2)
    return torch.cat((torch.zeros_like(ids[:, :1]), ids), dim=1).float()


def _run(trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
    grid = patches.shape[-2:]
    text = stacked(conditioning, "text", patches)
    tokens = trunk(
        hidden_states=to_tokens(patches),
        encoder_hidden_states=text,
        pooled_projections=stacked(conditioning, "pooled", patches),
        timestep=exact_time(sigma, 1000, patches),
        guidance=embedded_guidance(trunk, conditioning, DEFAULT_GUIDANCE, sigma),
        img_ids=position_ids(grid, patches.device),
        txt_ids=torch.zeros(text.shape[1], 3, device=patches.device),
        return_dict=False,
    )[0]
    return to_grid(tokens, grid)


def _hear_time(trunk: Any) -> None:
    hear_exact_time(trunk.time_text_embed.time_proj)


def _encode_text(
    components: Mapping[str, Any], prompts: Sequence[str], *, device: torch.device, max_sequence_length: int
) -> list[Conditioning]:
    pipeline = source_pipeline("FluxPipeline", components)
    text, pooled, _ = pipeline.encode_prompt(
        list(prompts), device=device, max_sequence_length=max_sequence_length
    )
    return [{"text": text[i], "pooled": pooled[i]} for i in range(len(prompts))]


FLUX = Family(
    name="flux",
    embedder="x_embedder",
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    shallow=("x_embedder", "context_embedder", "time_text_embed"),
    time_embedding="time_text_embed.timestep_embedder",
    velocity_sign=1,
    feature_channels=width_of_heads,
    pixel_config=lambda config, channels: {**config, "in_channels": channels, "out_channels": None},
    adapt=_hear_time,
    strip_output=strip_norm_and_projection,
    run=in_groups_of_equal_text(_run),
    pooled_text=True,
    text_room=lambda components, most, negative: room_in(components["tokenizer_2"], most),
    padded_text=0,
    encode_text=_encode_text,
    latent_embedder=lambda config: LatentEmbedder(name="x_embedder", patch_size=2, packed=True),
)

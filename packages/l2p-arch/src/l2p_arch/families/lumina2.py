"""Lumina-Image 2: one stream of [text, image] tokens with refiners for both, as Z-Image, but without pad
tokens.

Conventions: the time passed is 1 - sigma, unscaled, and the raw output is x_0 - noise. Conditioning: {"text":
(L, D)}.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from l2p_arch.families.base import Conditioning, Family, FeaturesOnly, LatentEmbedder, room_in
from l2p_arch.families.running import padded, source_pipeline

_LENGTHENING = Lock()


def _pixel_config(source: Mapping[str, Any], patch_channels: int) -> dict[str, Any]:
    return {**source, "patch_size": 1, "in_channels": patch_channels, "out_channels": 1}


def _strip_output(trunk: Any) -> None:
    trunk.norm_out = FeaturesOnly()
    trunk.out_channels = (
        trunk.config.hidden_size
    )  # makes the unpatchify of diffusers' forward a plain reshape


def _run(trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
    text, mask = padded(conditioning, "text", patches)
    if mask is None:
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=patches.device)
    _extend_rope(trunk.rope_embedder, [text.shape[1] + 1, *patches.shape[-2:]])
    return trunk(
        hidden_states=patches,
        timestep=1 - sigma,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]


def _extend_rope(rope: Any, wanted: Sequence[int]) -> None:
    """Lengthen the table of rotary angles where text or grid exceed it; the existing rows do not change."""
    if all(want <= have for want, have in zip(wanted, rope.axes_lens, strict=True)):
        return
    with _LENGTHENING, torch.device("cpu"):  # the table first: threads that share the model may read it
        lengths = [max(want, have) for want, have in zip(wanted, rope.axes_lens, strict=True)]
        rope.freqs_cis = rope._precompute_freqs_cis(rope.axes_dim, lengths, rope.theta)
        rope.axes_lens = lengths


def _encode_text(
    components: Mapping[str, Any],
    prompts: Sequence[str],
    *,
    device: torch.device,
    max_sequence_length: int,
    negative: bool = False,
) -> list[Conditioning]:
    """Put the system prompt before prompts, and not before negative ones."""
    pipeline = source_pipeline("Lumina2Pipeline", components)
    encoded = pipeline.encode_prompt(
        list(prompts),
        do_classifier_free_guidance=negative,
        negative_prompt=list(prompts),
        device=device,
        max_sequence_length=max_sequence_length,
    )
    text, mask = encoded[2:] if negative else encoded[:2]
    return [{"text": sample[keep.bool()]} for sample, keep in zip(text, mask, strict=True)]


def _text_room(components: Mapping[str, Any], most: int, negative: bool) -> tuple[Any, int]:
    system = source_pipeline("Lumina2Pipeline", components).system_prompt
    return room_in(components["tokenizer"], most, "" if negative else f"{system} <Prompt Start> ")


LUMINA2 = Family(
    name="lumina2",
    embedder="x_embedder",
    block_lists=("layers",),
    shallow=("x_embedder", "noise_refiner", "context_refiner", "time_caption_embed"),
    time_embedding="time_caption_embed.timestep_embedder",
    velocity_sign=-1,
    feature_channels=lambda config: config["hidden_size"],
    pixel_config=_pixel_config,
    strip_output=_strip_output,
    final_projection="norm_out",
    run=_run,
    text_tokens=256,
    text_room=_text_room,
    encode_text=_encode_text,
    encode_negative_text=partial(_encode_text, negative=True),
    latent_embedder=lambda config: LatentEmbedder(
        name="x_embedder", patch_size=config["patch_size"], fold="b c (h py) (w px) -> b h w (py px c)"
    ),
)

"""Z-Image: one stream of image and caption tokens, both padded to multiples of 32 by learned pad tokens.

Conventions (facts measured on diffusers' class): the time passed is 1 - sigma, and the raw output is x_0 -
noise. Conditioning: {"caption": (L, cap_feat_dim)}, the text encoder's next-to-last hidden states without
padding.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from l2p_arch.families.base import (
    PROBE,
    Conditioning,
    Family,
    FeaturesOnly,
    LatentEmbedder,
    before_prompt,
    room_in,
)

_LENGTHENING = Lock()


def _pixel_config(source: Mapping[str, Any], patch_channels: int) -> dict[str, Any]:
    return {**source, "all_patch_size": [1], "all_f_patch_size": [1], "in_channels": patch_channels}


def _strip_output(trunk: Any) -> None:
    trunk.all_final_layer["1-1"] = FeaturesOnly()
    trunk.out_channels = trunk.dim  # makes the unpatchify of diffusers' forward a plain reshape


def _fill_unset(trunk: Any) -> None:
    for pad_token in (trunk.x_pad_token, trunk.cap_pad_token):
        nn.init.normal_(pad_token, std=0.02)


def _run(trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
    dtype = patches.dtype
    captions = [sample["caption"].to(patches.device, dtype) for sample in conditioning]
    _extend_rope(trunk, patches.shape[-2:], max(len(caption) for caption in captions))
    images = list(patches.unsqueeze(2).unbind(0))  # (C, 1, h, w) each
    features = trunk(images, 1 - sigma, captions, patch_size=1, f_patch_size=1, return_dict=False)[0]
    return torch.stack(features).squeeze(2)


def _extend_rope(trunk: Any, grid: Sequence[int], caption_length: int) -> None:
    """Lengthen the table of rotary angles where the grid or caption exceeds it; the existing rows do not
    change."""
    rope = trunk.rope_embedder
    wanted = [caption_length + 34, *grid]  # caption rounded up to 32 tokens, then the image's own index
    if all(want <= have for want, have in zip(wanted, rope.axes_lens, strict=True)):
        return
    with _LENGTHENING:  # threads that share the model see the old table or the new one, never none
        lengths = [max(want, have) for want, have in zip(wanted, rope.axes_lens, strict=True)]
        table = rope.precompute_freqs_cis(rope.axes_dims, lengths, theta=rope.theta)
        rope.freqs_cis, rope.axes_lens = table, lengths


def _encode_text(
    components: Mapping[str, Any], prompts: Sequence[str], *, device: torch.device, max_sequence_length: int
) -> list[Conditioning]:
    """Return one user message per prompt through the chat template; hidden_states[-2] of the text encoder.

    Prompts of equal token count share a batch, so that none is padded and no result depends on its
    neighbours.
    """
    tokenizer, encoder = components["tokenizer"], components["text_encoder"]
    before_prompt(_message(tokenizer, PROBE))
    by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        ids = tokenizer(
            _message(tokenizer, prompt), truncation=True, max_length=max_sequence_length
        ).input_ids
        by_length[len(ids)].append((index, ids))
    result: list[Conditioning] = [{} for _ in prompts]
    for group in by_length.values():
        ids = torch.tensor([ids for _, ids in group], device=device)
        hidden = encoder(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
        ).hidden_states
        for (index, _), caption in zip(group, hidden[-2], strict=True):
            result[index] = {"caption": caption}
    return result


def _message(tokenizer: Any, prompt: str) -> str:
    message = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return text


def _text_room(components: Mapping[str, Any], most: int, negative: bool) -> tuple[Any, int]:
    tokenizer = components["tokenizer"]
    return room_in(tokenizer, most, tokenizer and before_prompt(_message(tokenizer, PROBE)))


Z_IMAGE = Family(
    name="z-image",
    embedder="all_x_embedder.1-1",
    block_lists=("layers",),
    shallow=(
        "all_x_embedder",
        "noise_refiner",
        "context_refiner",
        "t_embedder",
        "cap_embedder",
        "x_pad_token",
        "cap_pad_token",
    ),
    time_embedding="t_embedder",
    velocity_sign=-1,
    feature_channels=lambda config: config["dim"],
    pixel_config=_pixel_config,
    strip_output=_strip_output,
    fill_unset=_fill_unset,
    final_norm="all_final_layer.1-1",
    final_projection="all_final_layer.1-1",
    run=_run,
    text_key="caption",
    text_room=_text_room,
    encode_text=_encode_text,
    latent_embedder=lambda config: LatentEmbedder(
        name=f"all_x_embedder.{config['all_patch_size'][0]}-{config['all_f_patch_size'][0]}",
        patch_size=config["all_patch_size"][0],
        fold="b c (h py) (w px) -> b h w (py px c)",
        answer=f"all_final_layer.{config['all_patch_size'][0]}-{config['all_f_patch_size'][0]}",
    ),
)

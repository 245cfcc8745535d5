"""PRX: image tokens attend to themselves and to masked text, which no block changes; rotary positions.

Conventions: the time passed is sigma, and the raw output is the velocity. Conditioning: {"text": (L, 2304)},
the last hidden states of T5Gemma's encoder. Published with an f8 VAE and patch 2, and with DC-AE, which
shrinks 32-fold: patch 16 and patch 32 keep their token grids.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2p_arch.errors import ArchError
from l2p_arch.families.base import Conditioning, Family, FeaturesOnly, LatentEmbedder
from l2p_arch.families.running import padded, source_pipeline


def _pixel_config(source: Mapping[str, Any], patch_channels: int) -> dict[str, Any]:
    if source.get("bottleneck_size") or source.get("resolution_embeds"):
        raise ArchError("this is PRXPixel, which draws pixels already; surgery starts from a latent PRX")
    return {**source, "patch_size": 1, "in_channels": patch_channels}


def _strip_output(trunk: Any) -> None:
    trunk.final_layer = FeaturesOnly()


def _run(trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
    text, mask = padded(conditioning, "text", patches)
    return trunk(
        hidden_states=patches,
        timestep=sigma,
        encoder_hidden_states=text,
        attention_mask=mask,
        return_dict=False,
    )[0]


def _encode_text(
    components: Mapping[str, Any], prompts: Sequence[str], *, device: torch.device, max_sequence_length: int
) -> list[Conditioning]:
    from diffusers.utils import is_ftfy_available

    if not is_ftfy_available():
        raise ArchError("PRX cleans its prompts with ftfy, which is not installed; pip install ftfy")
    pipeline = source_pipeline("PRXPipeline", components)
    text, mask, _, _ = pipeline.encode_prompt(
        list(prompts),
        device=device,
        do_classifier_free_guidance=False,
        tokenizer_max_length=max_sequence_length,
    )
    return [{"text": sample[keep.bool()]} for sample, keep in zip(text, mask, strict=True)]


PRX = Family(
    name="prx",
    embedder="img_in",
    block_lists=("blocks",),
    shallow=("img_in", "txt_in", "time_in"),
    time_embedding="time_in",
    velocity_sign=1,
    feature_channels=lambda config: config["hidden_size"],
    pixel_config=_pixel_config,
    strip_output=_strip_output,
    final_norm="final_layer",
    final_projection="final_layer",
    run=_run,
    text_tokens=256,
    encode_text=_encode_text,
    latent_embedder=lambda config: LatentEmbedder(name="img_in", patch_size=config["patch_size"]),
)

"""PixArt-Sigma: attention over image tokens, cross-attention to masked text, sinusoidal positions.

The one family that was not trained by flow matching: at 1000 steps t it predicts the noise, and its variance,
of x = sqrt(a_t) x_0 + sqrt(1 - a_t) noise. Its blocks get what they know: x_t scaled to such an x, and the
(fractional) step of the same signal-to-noise ratio. They are inherited whole, the objective is not: the new
head learns the velocity from features that were trained for the noise, and above sigma 0.9937, where the
steps end, they hear no later time. Conditioning: {"text": (L, 4096)}.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2p_arch.errors import ArchError
from l2p_arch.families.base import (
    IN_ROWS,
    Conditioning,
    Family,
    LatentEmbedder,
    strip_norm_and_projection,
    width_of_heads,
)
from l2p_arch.families.ddpm import ddpm_step, latent_of_noise, to_ddpm
from l2p_arch.families.running import padded, source_pipeline


def _pixel_config(source: Mapping[str, Any], patch_channels: int) -> dict[str, Any]:
    import diffusers

    if source.get("use_additional_conditions"):
        raise ArchError("this is PixArt-alpha, which also takes the size it draws; use PixArt-Sigma")
    known = inspect.signature(diffusers.PixArtTransformer2DModel.__init__).parameters
    return {
        **{key: value for key, value in source.items() if key in known},  # older configs have further keys
        "patch_size": 1,
        "sample_size": source["sample_size"] // source["patch_size"],
        "interpolation_scale": source.get("interpolation_scale") or max(source["sample_size"] // 64, 1),
        "use_additional_conditions": False,
        "in_channels": patch_channels,
        "out_channels": 1,
    }


def _strip_output(trunk: Any) -> None:
    strip_norm_and_projection(trunk)
    trunk.out_channels = trunk.inner_dim  # makes the unpatchify of diffusers' forward a plain reshape
    # The forward itself modulates the last tokens, by this table and the embedded time: both become zero.
    del trunk.scale_shift_table
    trunk.register_buffer("scale_shift_table", torch.zeros(2, trunk.inner_dim), persistent=False)
    trunk.adaln_single.register_forward_hook(_without_embedded_time)


def _without_embedded_time(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    modulation, embedded_time = output
    return modulation, torch.zeros_like(embedded_time)


def _run(trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
    text, mask = padded(conditioning, "text", patches)
    return trunk(
        hidden_states=to_ddpm(patches, sigma),
        encoder_hidden_states=text,
        timestep=ddpm_step(sigma),
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]


def _encode_text(
    components: Mapping[str, Any], prompts: Sequence[str], *, device: torch.device, max_sequence_length: int
) -> list[Conditioning]:
    pipeline = source_pipeline("PixArtSigmaPipeline", components)
    text, mask, _, _ = pipeline.encode_prompt(
        list(prompts),
        do_classifier_free_guidance=False,
        device=device,
        max_sequence_length=max_sequence_length,
    )
    return [{"text": sample[keep.bool()]} for sample, keep in zip(text, mask, strict=True)]


PIXART_SIGMA = Family(
    name="pixart-sigma",
    embedder="pos_embed.proj",
    block_lists=("transformer_blocks",),
    shallow=("pos_embed", "adaln_single", "caption_projection"),
    time_embedding="adaln_single.emb.timestep_embedder",
    velocity_sign=1,
    feature_channels=width_of_heads,
    pixel_config=_pixel_config,
    strip_output=_strip_output,
    predicted_latent=latent_of_noise,
    run=_run,
    text_tokens=300,
    encode_text=_encode_text,
    latent_embedder=lambda config: LatentEmbedder(
        name="pos_embed.proj", patch_size=config["patch_size"], answer_fold=IN_ROWS
    ),
    flow_scheduler={"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
)

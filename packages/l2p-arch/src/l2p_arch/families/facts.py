"""What is known of a family's published model without its weights: where it is, its licence, how large it is.

It lets a transfer be planned before anything is downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """A family's published model."""

    repository: str  # on the Hugging Face hub
    licence: str  # of the weights; a transferred model is a derivative
    others: Mapping[str, int]  # parameters of the parts besides the transformer
    exclude: tuple[str, ...] = ()  # what the repository holds a second time, in another layout
    transformer_bytes: int = 2  # per parameter, as published
    transformer: Mapping[str, Any] = field(default_factory=dict)  # where it differs from diffusers' defaults


QWEN3_4B, QWEN25_VL_7B = 4_022_000_000, 8_292_000_000
T5_XXL, CLIP_L, CLIP_G = 4_762_000_000, 123_000_000, 695_000_000
VAE = 84_000_000

FULL_SIZES: dict[str, FullSize] = {
    "z-image": FullSize(
        repository="Tongyi-MAI/Z-Image-Turbo",
        licence="Apache-2.0",
        others={"text_encoder": QWEN3_4B, "vae": VAE},
        transformer_bytes=4,
    ),
    "flux": FullSize(
        repository="black-forest-labs/FLUX.1-dev",
        licence="FLUX.1 [dev] Non-Commercial License; accept it on the model's page first",
        others={"text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "vae": VAE},
        exclude=("flux1-dev.safetensors", "ae.safetensors"),
        transformer={"guidance_embeds": True},
    ),
    "qwen-image": FullSize(
        repository="Qwen/Qwen-Image",
        licence="Apache-2.0",
        others={"text_encoder": QWEN25_VL_7B, "vae": 127_000_000},
    ),
    "sd3": FullSize(
        repository="stabilityai/stable-diffusion-3.5-large",
        licence="Stability AI Community License; accept it on the model's page first",
        others={"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL, "vae": VAE},
        exclude=("sd3.5_large.safetensors", "text_encoders/*"),
        transformer={
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
}


def full_transformer_config(family: str, transformer_class: str) -> dict[str, Any]:
    """Return the transformer config of a family at its published size; diffusers' defaults for one not
    listed.
    """
    import diffusers
    import torch

    changes = FULL_SIZES[family].transformer if family in FULL_SIZES else {}
    with torch.device("meta"):
        return dict(getattr(diffusers, transformer_class)(**changes).config)

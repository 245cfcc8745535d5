"""The published pipelines of source families, part by part: classes and configs, without weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from l2p_arch.errors import ArchError
from l2p_arch.families.facts import FULL_SIZES
from l2p_arch.source_formats import source_format


@dataclass(frozen=True, kw_only=True)
class Component:
    """A part of a pipeline that has weights."""

    library: str
    """diffusers or transformers."""
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the class's defaults."""
    dtype: torch.dtype = torch.bfloat16
    """As stored."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A family's published pipeline."""

    pipeline: str
    components: Mapping[str, Component]
    tokenizers: Mapping[str, int]
    """Names, and the most tokens of a prompt."""
    scheduler: Mapping[str, Any]


def recipe(family: str) -> Recipe:
    """Return the published model of a family.

    Raises:
        ArchError: none is known.
    """
    if family not in _RECIPES:
        raise ArchError(
            f"the full size of {family} is not known here ({', '.join(_RECIPES)} are); "
            "give a directory whose configs are to be followed"
        )
    return _RECIPES[family]()


def _transformer(family: str) -> Component:
    known = FULL_SIZES[family]
    return Component(
        library="diffusers",
        class_name=source_format(family).transformer_class,
        config=known.transformer,
        dtype=torch.float32 if known.transformer_bytes == 4 else torch.bfloat16,
    )


def _vae(**values: Any) -> Component:
    """Return the 16-channel autoencoder that FLUX.1, SD3 and Z-Image have, with their own scales."""
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "sample_size": 1024,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "force_upcast": True,
    }
    return Component(library="diffusers", class_name="AutoencoderKL", config=config | values)


def _clip(class_name: str, width: int, layers: int, heads: int) -> Component:
    config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
    }
    return Component(library="transformers", class_name=class_name, config=config)


def _t5_xxl() -> Component:
    config = {
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 32128,
    }
    return Component(library="transformers", class_name="T5EncoderModel", config=config)


def _z_image() -> Recipe:
    qwen = {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }
    return Recipe(
        pipeline="ZImagePipeline",
        components={
            "transformer": _transformer("z-image"),
            "text_encoder": Component(library="transformers", class_name="Qwen3Model", config=qwen),
            "vae": _vae(scaling_factor=0.3611, shift_factor=0.1159),
        },
        tokenizers={"tokenizer": 512},
        scheduler={"shift": 3.0},
    )


def _flux() -> Recipe:
    return Recipe(
        pipeline="FluxPipeline",
        components={
            "transformer": _transformer("flux"),
            "text_encoder": _clip("CLIPTextModel", 768, 12, 12),
            "text_encoder_2": _t5_xxl(),
            "vae": _vae(scaling_factor=0.3611, shift_factor=0.1159),
        },
        tokenizers={"tokenizer": 77, "tokenizer_2": 512},
        scheduler={"use_dynamic_shifting": True},
    )


def _sd3() -> Recipe:
    return Recipe(
        pipeline="StableDiffusion3Pipeline",
        components={
            "transformer": _transformer("sd3"),
            "text_encoder": _clip("CLIPTextModelWithProjection", 768, 12, 12),
            "text_encoder_2": _clip("CLIPTextModelWithProjection", 1280, 32, 20),
            "text_encoder_3": _t5_xxl(),
            "vae": _vae(scaling_factor=1.5305, shift_factor=0.0609),
        },
        tokenizers={"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 256},
        scheduler={"shift": 3.0},
    )


_RECIPES: dict[str, Callable[[], Recipe]] = {"z-image": _z_image, "flux": _flux, "sd3": _sd3}

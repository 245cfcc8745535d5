"""A tiny pipeline directory of every family; the fixture `source` goes through all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
import transformers
from l2p_mini.architecture import build_tokenizer

SCHEDULER = diffusers.FlowMatchEulerDiscreteScheduler
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
CROSS: dict[str, Any] = {**HEADS, "num_layers": 2, "cross_attention_dim": 32, "caption_channels": 32}
LANGUAGE_MODEL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
DEEP = {**LANGUAGE_MODEL, "hidden_size": 8, "num_attention_heads": 1, "head_dim": 8}
VISION = {"hidden_size": 16, "intermediate_size": 16}
BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


def vae() -> Any:
    return diffusers.AutoencoderKL(**BLOCKS, shift_factor=0.1, scaling_factor=0.5)


def clip(with_projection: bool) -> Any:
    size = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 16, "projection_dim": 16}
    config = transformers.CLIPTextConfig(**size, num_hidden_layers=2, num_attention_heads=2, eos_token_id=3)
    return getattr(transformers, f"CLIPTextModel{'WithProjection' if with_projection else ''}")(config)


def clip_tokenizer() -> Any:
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def t5() -> Any:
    size = {"vocab_size": 100, "d_model": 32, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    return transformers.T5EncoderModel(transformers.T5Config(**size))


def gemma() -> Any:
    return transformers.Gemma2Model(transformers.Gemma2Config(**LANGUAGE_MODEL))


def flux() -> Any:
    return diffusers.FluxPipeline(
        scheduler=SCHEDULER(use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=clip(False),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=build_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 6, 6],
            guidance_embeds=True,
            **HEADS,
        ),
    )


def sd3(with_t5: bool = True) -> Any:
    return diffusers.StableDiffusion3Pipeline(
        scheduler=SCHEDULER(shift=3.0),
        vae=vae(),
        text_encoder=clip(True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5() if with_t5 else None,
        tokenizer_3=build_tokenizer() if with_t5 else None,
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            **HEADS,
        ),
    )


def lumina2() -> Any:
    return diffusers.Lumina2Pipeline(
        scheduler=SCHEDULER(shift=3.0),
        vae=vae(),
        text_encoder=gemma(),
        tokenizer=build_tokenizer(),
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=[4, 4, 4],
            axes_lens=[32, 8, 8],
            cap_feat_dim=32,
        ),
    )


def sana() -> Any:
    sides = ("encoder", "decoder")
    return diffusers.SanaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            **{f"{side}_block_out_channels": (8,) * 6 for side in sides},
            **{f"{side}_layers_per_block": (1,) * 6 for side in sides},
            **{f"{side}_block_types": "ResBlock" for side in sides},
            **{f"{side}_qkv_multiscales": ((),) * 6 for side in sides},
            downsample_block_type="Conv",
            upsample_block_type="interpolate",
            scaling_factor=0.4,
        ),
        text_encoder=gemma(),
        tokenizer=build_tokenizer(),
        transformer=diffusers.SanaTransformer2DModel(
            sample_size=4,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            **CROSS,
        ),
    )


def qwen_image() -> Any:
    text = {"rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**LANGUAGE_MODEL, **text, "rope_theta": 1e6},
        vision_config={**VISION, "depth": 1, "num_heads": 1, "out_hidden_size": 32},
    )
    return diffusers.QwenImagePipeline(
        scheduler=SCHEDULER(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1] * 4,
            latents_std=[0.5] * 4,
        ),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=build_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            **HEADS,
        ),
    )


def flux2(pipeline_class: Any, text_encoder: Any, tokenizer: Any) -> Any:
    return pipeline_class(
        scheduler=SCHEDULER(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLFlux2(**BLOCKS),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=[4, 4, 4, 4],
            **HEADS,
        ),
    )


def flux2_klein() -> Any:
    """Its text comes from layers 9, 18 and 27 of a Qwen3."""
    config = transformers.Qwen3Config(**{**DEEP, "num_hidden_layers": 28})
    return flux2(diffusers.Flux2KleinPipeline, transformers.Qwen3ForCausalLM(config), build_tokenizer())


def flux2_dev() -> Any:
    """Its text comes from layers 10, 20 and 30 of a Mistral, through the processor of a Pixtral."""
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **DEEP, "num_hidden_layers": 31},
        vision_config={**VISION, "model_type": "pixtral", "num_hidden_layers": 1, "num_attention_heads": 1},
    )
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], special_tokens=True)
    tokenizer.padding_side = "left"
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(),
        tokenizer=tokenizer,
        chat_template="{% for message in messages %}{% for part in message['content'] %}"
        "{{ message['role'] }} {{ part['text'] }} {% endfor %}{% endfor %}",
    )
    encoder = transformers.Mistral3ForConditionalGeneration(config)
    return flux2(diffusers.Flux2Pipeline, encoder, processor)


def t5gemma_config() -> Any:
    return transformers.T5GemmaConfig(encoder=LANGUAGE_MODEL, decoder=LANGUAGE_MODEL, vocab_size=100)


def prx() -> Any:
    from diffusers.pipelines.prx import T5GemmaEncoder

    return diffusers.PRXPipeline(
        scheduler=SCHEDULER(shift=3.0),
        vae=vae(),
        text_encoder=T5GemmaEncoder(t5gemma_config().encoder),
        tokenizer=build_tokenizer(),
        transformer=diffusers.PRXTransformer2DModel(
            in_channels=4, context_in_dim=32, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]
        ),
    )


def pixart_sigma() -> Any:
    return diffusers.PixArtSigmaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(),  # of DDPM, as published
        vae=vae(),
        text_encoder=t5(),
        tokenizer=build_tokenizer(),
        transformer=diffusers.PixArtTransformer2DModel(sample_size=8, **CROSS),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "flux": flux,
    "sd3": sd3,
    "sd3 without t5": lambda: sd3(with_t5=False),
    "qwen-image": qwen_image,
    "lumina2": lumina2,
    "flux2 klein": flux2_klein,
    "flux2 dev": flux2_dev,
    "sana": sana,
    "prx": prx,
    "pixart-sigma": pixart_sigma,
}


class Source(NamedTuple):
    """A tiny pipeline and the directory that it was saved to."""

    family: str
    pipeline: Any
    directory: Path


def as_published(name: str, directory: Path) -> None:
    """Change what diffusers saves to what the authors published."""
    index = directory / "model_index.json"
    if name == "prx":  # a class of transformers, configured by the whole T5Gemma, of which it is the encoder
        entry = {"text_encoder": ["transformers", "T5GemmaEncoder"]}
        index.write_text(json.dumps(json.loads(index.read_text()) | entry))
        t5gemma_config().save_pretrained(directory / "text_encoder")
    if name == "pixart-sigma":  # an older class
        config = directory / "transformer" / "config.json"
        config.write_text(config.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel"))


@pytest.fixture(params=BUILDERS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """The pipeline of each family in turn."""
    torch.manual_seed(0)
    pipeline = BUILDERS[request.param]()
    pipeline.save_pretrained(tmp_path / "source")
    as_published(request.param, tmp_path / "source")
    return Source(request.param.split()[0], pipeline, tmp_path / "source")

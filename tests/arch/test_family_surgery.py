"""A tiny pipeline directory of each further family goes through surgery, loading, text encoding and
sampling."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from l2p_arch import L2PPipeline, convert
from l2p_mini.architecture import build_tokenizer

SCHEDULER = diffusers.FlowMatchEulerDiscreteScheduler
TRANSFORMER: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 32}
VAE: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "shift_factor": 0.1,
    "scaling_factor": 0.5,
}


def clip(with_projection: bool) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        eos_token_id=3,
    )
    return (transformers.CLIPTextModelWithProjection if with_projection else transformers.CLIPTextModel)(
        config
    )


def clip_tokenizer() -> Any:
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def t5() -> Any:
    config = transformers.T5Config(vocab_size=100, d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def flux() -> Any:
    return diffusers.FluxPipeline(
        scheduler=SCHEDULER(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=clip(False),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=build_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 6, 6],
            guidance_embeds=True,
            **TRANSFORMER,
        ),
    )


def sd3() -> Any:
    return diffusers.StableDiffusion3Pipeline(
        scheduler=SCHEDULER(shift=3.0),
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=clip(True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            **TRANSFORMER,
        ),
    )


def gemma() -> Any:
    """The text encoder of Lumina2 and SANA."""
    config = transformers.Gemma2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return transformers.Gemma2Model(config)


def lumina2() -> Any:
    return diffusers.Lumina2Pipeline(
        scheduler=SCHEDULER(shift=3.0),
        vae=diffusers.AutoencoderKL(**VAE),
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
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_out_channels=(8, 8, 8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8, 8, 8),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )
    return diffusers.SanaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
        vae=vae,
        text_encoder=gemma(),
        tokenizer=build_tokenizer(),
        transformer=diffusers.SanaTransformer2DModel(
            sample_size=4,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
        ),
    )


def qwen_image() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 100,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1e6,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 4,
        latents_std=[0.5] * 4,
    )
    return diffusers.QwenImagePipeline(
        scheduler=SCHEDULER(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=build_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def flux2() -> Any:
    """FLUX.2 [klein], whose text comes from layers 9, 18 and 27 of a Qwen3."""
    config = transformers.Qwen3Config(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=28,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    return diffusers.Flux2KleinPipeline(
        scheduler=SCHEDULER(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=transformers.Qwen3ForCausalLM(config),
        tokenizer=build_tokenizer(),
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=[4, 4, 4, 4],
        ),
    )


FAMILY_PIPELINES = [flux, sd3, qwen_image, lumina2, flux2, sana]
PROMPTS = [
    "a small red circle left of a large blue square and a green star on a beige background today",
    "two blue squares and a large red triangle on a gray background",
]


@pytest.mark.parametrize("build", FAMILY_PIPELINES)
@pytest.mark.parametrize("initialisation", ["default", "fitted"])
def test_a_pipeline_directory_becomes_a_pixel_space_pipeline(
    build: Callable[[], Any], initialisation: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = build()
    patch_size = 32 if build is sana else 16
    source.save_pretrained(tmp_path / "source")
    report = convert(
        tmp_path / "source",
        tmp_path / "out",
        patch_size=patch_size,
        head_channels=(8,) * (5 if build is sana else 4),
        initialisation=initialisation,
        calibration_images=torch.rand(4, 3, 64, 64) * 2 - 1,
    )
    states = source.transformer.state_dict()
    kept = {record.name.removeprefix("trunk.") for record in report.inherited}
    assert kept | {record.name for record in report.dropped} == set(states)
    pipeline = L2PPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    trunk = pipeline.transformer.trunk.state_dict()
    assert all(torch.equal(trunk[name], states[name]) for name in kept)
    size = {"height": 2 * patch_size, "width": 3 * patch_size}
    images = pipeline(
        PROMPTS,
        negative_prompt=PROMPTS[1],  # Qwen-Image drops 34 tokens of its template: an empty one would be eaten
        **size,
        num_inference_steps=2,
        seeds=[0, 1],
        max_sequence_length=64,
        output_type="pt",
    ).images
    assert images.shape == (2, 3, 2 * patch_size, 3 * patch_size)
    assert torch.isfinite(images).all()


def encoded_by(source: Any) -> list[dict[str, torch.Tensor]]:
    """What the source's own pipeline makes of the prompts, one mapping per prompt, without padding."""
    options: dict[str, Any] = {"device": torch.device("cpu"), "max_sequence_length": 64}
    name = type(source).__name__
    if name == "FluxPipeline":
        text, pooled, _ = source.encode_prompt(PROMPTS, None, **options)
        return [{"text": text[i], "pooled": pooled[i]} for i in range(2)]
    if name == "StableDiffusion3Pipeline":
        text, _, pooled, _ = source.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, **options
        )
        return [{"text": text[i], "pooled": pooled[i]} for i in range(2)]
    if name == "Flux2KleinPipeline":
        text, _ = source.encode_prompt(PROMPTS, **options)
        return [{"text": sample} for sample in text]
    if name == "QwenImagePipeline":
        text, mask = source.encode_prompt(PROMPTS, **options)
    else:
        if name == "SanaPipeline":
            default = inspect.signature(source.__call__).parameters["complex_human_instruction"].default
            options["complex_human_instruction"] = default
        text, mask, _, _ = source.encode_prompt(PROMPTS, do_classifier_free_guidance=False, **options)
    return [{"text": sample[keep.bool()]} for sample, keep in zip(text, mask, strict=True)]


@pytest.mark.parametrize("build", FAMILY_PIPELINES)
def test_text_is_encoded_as_the_familys_own_pipeline_does(build: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build()
    source.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", head_channels=(8, 8))
    for component in source.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    with torch.no_grad():
        expected = encoded_by(source)
    ours = L2PPipeline.from_pretrained(tmp_path / "out").encode(PROMPTS, max_sequence_length=64)
    for actual, wanted in zip(ours, expected, strict=True):
        assert actual.keys() == wanted.keys()
        assert all(torch.equal(actual[key], wanted[key]) for key in wanted)
        assert len(actual["text"]) > 0

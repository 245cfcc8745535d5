"""A tiny pipeline directory of each further family goes through surgery, loading, text encoding and
sampling."""

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


@pytest.mark.parametrize("build", [flux, sd3])
@pytest.mark.parametrize("initialisation", ["default", "fitted"])
def test_a_pipeline_directory_becomes_a_pixel_space_pipeline(
    build: Callable[[], Any], initialisation: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = build()
    source.save_pretrained(tmp_path / "source")
    report = convert(
        tmp_path / "source",
        tmp_path / "out",
        head_channels=(8, 8, 8, 8),
        initialisation=initialisation,
        calibration_images=torch.rand(4, 3, 32, 32) * 2 - 1,
    )
    states = source.transformer.state_dict()
    kept = {record.name.removeprefix("trunk.") for record in report.inherited}
    assert kept | {record.name for record in report.dropped} == set(states)
    pipeline = L2PPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    trunk = pipeline.transformer.trunk.state_dict()
    assert all(torch.equal(trunk[name], states[name]) for name in kept)
    prompts = ["a red circle", "a blue square on a gray background"]
    images = pipeline(
        prompts, height=32, width=48, num_inference_steps=2, seeds=[0, 1], output_type="pt"
    ).images
    assert images.shape == (2, 3, 32, 48)
    assert torch.isfinite(images).all()


def test_flux_encodes_text_as_its_own_pipeline_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = flux()
    source.text_encoder_2.eval()
    source.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", head_channels=(8, 8))
    prompts = ["a red circle", "a blue square"]
    with torch.no_grad():
        text, pooled, _ = source.encode_prompt(prompts, None, max_sequence_length=64)
    ours = L2PPipeline.from_pretrained(tmp_path / "out").encode(prompts, max_sequence_length=64)
    torch.testing.assert_close(torch.stack([sample["text"] for sample in ours]), text)
    torch.testing.assert_close(torch.stack([sample["pooled"] for sample in ours]), pooled)

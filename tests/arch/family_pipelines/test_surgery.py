"""A pipeline directory of every family goes through surgery, loading and sampling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import L2PPipeline, convert

PROMPTS = [
    "a small red circle left of a large blue square and a green star on a beige background today",
    "two blue squares and a large red triangle on a gray background",
]


@pytest.mark.parametrize("initialisation", ["default", "fitted"])
def test_a_pipeline_directory_becomes_a_pixel_space_pipeline(
    source: Any, initialisation: str, tmp_path: Path
) -> None:
    if source.family == "prx":
        pytest.importorskip("ftfy", reason="PRX cleans its prompts with it")
    patch_size = 32 if source.family == "sana" else 16
    report = convert(
        source.directory,
        tmp_path / "out",
        patch_size=patch_size,
        head_channels=(8,) * (5 if source.family == "sana" else 4),
        initialisation=initialisation,
        calibration_images=torch.rand(4, 3, 64, 64) * 2 - 1,
    )
    states = source.pipeline.transformer.state_dict()
    kept = {record.name.removeprefix("trunk.") for record in report.inherited}
    assert kept | {record.name for record in report.dropped} == set(states)
    pipeline = L2PPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    trunk = pipeline.transformer.trunk.state_dict()
    assert all(torch.equal(trunk[name], states[name]) for name in kept)
    images = pipeline(
        PROMPTS,
        negative_prompt=PROMPTS[1],  # Qwen-Image drops 34 tokens of its template: an empty one would be eaten
        height=2 * patch_size,
        width=3 * patch_size,
        num_inference_steps=2,
        seeds=[0, 1],
        max_sequence_length=64,
        output_type="pt",
    ).images
    assert images.shape == (2, 3, 2 * patch_size, 3 * patch_size)
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("source", ["sd3"], indirect=True)
def test_sd3_may_be_loaded_without_its_largest_encoder_alone(source: Any, tmp_path: Path) -> None:
    convert(source.directory, tmp_path / "out", head_channels=(8, 8, 8, 8))
    pipeline = L2PPipeline.from_pretrained(tmp_path / "out", text_encoder_3=None)
    [sample] = pipeline.encode("a red circle", max_sequence_length=64)
    assert not sample["text"][77:].any()  # zeros stand for T5, as in diffusers


@pytest.mark.parametrize("source", ["flux"], indirect=True)
def test_the_guidance_that_a_distilled_model_embeds_can_be_chosen(source: Any, tmp_path: Path) -> None:
    convert(source.directory, tmp_path / "out", head_channels=(8, 8, 8, 8))
    pipeline = L2PPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    seen: list[list[float]] = []
    pipeline.transformer.trunk.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["guidance"].tolist()), with_kwargs=True
    )
    options: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 1, "max_sequence_length": 64}
    pipeline(PROMPTS, **options)
    pipeline(PROMPTS, distilled_guidance_scale=7.0, **options)
    assert seen == [[3.5] * 4, [7.0] * 4]  # both passes of both prompts

"""What a mask keeps is kept bit by bit, and what it frees is painted as the schedule says."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from l2p_arch import ArchError, L2PPipeline, L2PTransformer, extend_canvas
from PIL import Image

FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CALL: dict[str, Any] = {
    "prompt_conditioning": [{"caption": torch.ones(4, 12)}],
    "guidance_scale": 1.0,
    "num_inference_steps": 4,
    "seeds": [3],
}


@pytest.fixture(scope="module")
def pipeline(tiny_trunks: dict[str, dict[str, Any]]) -> L2PPipeline:
    torch.manual_seed(0)
    model = L2PTransformer("z-image", tiny_trunks["z-image"], patch_size=4, head_channels=(8, 8)).eval()
    made = L2PPipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    made.set_progress_bar_config(disable=True)
    return made


def _picture(height: int = 16, width: int = 24, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def _box(height: int, width: int, top: int, left: int, bottom: int, right: int) -> Any:
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        FlowMatchHeunDiscreteScheduler(),
        FlowMatchLCMScheduler(),
        DPMSolverMultistepScheduler(**FLOW),
    ],
    ids=["euler", "stochastic", "heun", "lcm", "dpm"],
)
@pytest.mark.parametrize("strength", [None, 0.7])
def test_pixels_outside_the_mask_are_the_inputs_bytes_with_every_scheduler(
    pipeline: L2PPipeline, monkeypatch: pytest.MonkeyPatch, scheduler: Any, strength: float | None
) -> None:
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    picture, mask = _picture(), _box(16, 24, 3, 5, 11, 18)
    [painted] = pipeline(image=picture, mask_image=Image.fromarray(mask), strength=strength, **CALL).images
    before, after = np.asarray(picture), np.asarray(painted)
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert (after[mask == 255] != before[mask == 255]).mean() > 0.9


def test_every_level_of_every_channel_survives(pipeline: L2PPipeline) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([levels, levels[::-1], levels.T], axis=-1))
    mask = _box(16, 16, 0, 0, 1, 1)
    [painted] = pipeline(image=picture, mask_image=mask, **CALL).images
    assert np.array_equal(np.asarray(painted)[mask == 0], np.asarray(picture)[mask == 0])


def test_a_mask_is_the_same_in_every_form(pipeline: L2PPipeline) -> None:
    picture, mask = _picture(), _box(16, 24, 3, 5, 11, 18)
    layer = np.zeros((16, 24, 4), np.uint8)
    layer[mask == 255] = 255  # white where it was drawn, transparent elsewhere
    forms = [
        Image.fromarray(mask),
        Image.fromarray(mask).convert("1"),
        Image.fromarray(mask).convert("RGB"),
        Image.fromarray(layer),
        mask,
        mask[None, ..., None],
        mask == 255,
        (mask / 255).astype(np.float32),
        torch.from_numpy(mask),
        torch.from_numpy(mask / 255)[None, None],
        [Image.fromarray(mask)],
    ]
    first, *others = (
        pipeline(image=picture, mask_image=form, output_type="latent", **CALL).images for form in forms
    )
    assert all(torch.equal(first, other) for other in others)


def test_grey_is_a_strength_of_its_own(pipeline: L2PPipeline) -> None:
    picture = _picture()
    grey = np.full((16, 24), 0.5, np.float32)
    for strength, as_image in ((1.0, 0.5), (0.5, 0.25)):
        soft = pipeline(image=picture, mask_image=grey, strength=strength, output_type="latent", **CALL)
        whole = pipeline(image=picture, strength=as_image, output_type="latent", **CALL)
        assert torch.equal(soft.images, whole.images)
    white = pipeline(image=picture, mask_image=np.ones((16, 24)), output_type="latent", **CALL).images
    assert torch.equal(white, pipeline(height=16, width=24, output_type="latent", **CALL).images)
    [black] = pipeline(image=picture, mask_image=np.zeros((16, 24)), **CALL).images
    assert np.array_equal(np.asarray(black), np.asarray(picture))


def test_a_soft_edge_changes_less_the_darker_it_is(pipeline: L2PPipeline) -> None:
    picture = Image.new("RGB", (24, 16), (128, 128, 128))
    ramp = np.repeat(np.linspace(0, 1, 24, dtype=np.float32)[None], 16, axis=0)
    options = CALL | {"num_inference_steps": 12}
    [painted] = pipeline(image=picture, mask_image=ramp, output_type="np", **options).images
    change = np.abs(painted - 128 / 255).mean(axis=(0, 2)).reshape(4, 6).mean(axis=1)
    assert change[0] < change[1] < change[3]
    assert np.allclose(painted[:, 0], 128 / 255, atol=1e-6)


@pytest.mark.parametrize("size", [(17, 22), (13, 9), (5, 30)])
def test_pictures_of_any_size_keep_their_size_and_bytes(pipeline: L2PPipeline, size: tuple[int, int]) -> None:
    picture, mask = _picture(*size), _box(*size, 1, 2, size[0] - 2, size[1] - 3)
    [painted] = pipeline(image=picture, mask_image=mask, **CALL).images
    assert painted.size == picture.size
    assert np.array_equal(np.asarray(painted)[mask == 0], np.asarray(picture)[mask == 0])
    assert not np.array_equal(np.asarray(painted), np.asarray(picture))


def test_masks_of_another_size_are_fitted_to_the_picture(pipeline: L2PPipeline) -> None:
    picture, small = _picture(), _box(8, 12, 2, 3, 6, 9)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    results = [
        pipeline(image=picture, mask_image=mask, output_type="latent", **CALL).images
        for mask in (small, large, np.repeat(np.repeat(small, 6, axis=0), 6, axis=1))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_picture_lying_on_its_side_is_painted_upright(pipeline: L2PPipeline) -> None:
    upright, mask = _picture(24, 16), _box(24, 16, 4, 4, 12, 12)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6  # shown turned by 90 degrees clockwise
    [painted] = pipeline(image=lying, mask_image=mask, **CALL).images
    assert painted.size == upright.size
    assert np.array_equal(np.asarray(painted)[mask == 0], np.asarray(upright)[mask == 0])


def test_each_image_of_a_batch_has_its_own_picture_and_mask(pipeline: L2PPipeline) -> None:
    options = CALL | {"prompt_conditioning": CALL["prompt_conditioning"] * 2, "seeds": [3, 4]}
    pictures = [_picture(seed=1), _picture(seed=2)]
    masks = [_box(16, 24, 0, 0, 8, 8), _box(16, 24, 8, 8, 16, 24)]
    together = pipeline(image=pictures, mask_image=masks, output_type="pt", **options).images
    for number in range(2):
        alone = pipeline(
            image=pictures[number],
            mask_image=masks[number],
            output_type="pt",
            **CALL | {"seeds": [3 + number]},
        ).images
        torch.testing.assert_close(together[number], alone[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(
            together[number][:, torch.from_numpy(masks[number] == 0)],
            alone[0][:, torch.from_numpy(masks[number] == 0)],
        )


def test_a_canvas_is_extended_around_an_untouched_picture(pipeline: L2PPipeline) -> None:
    picture = _picture(10, 12)
    canvas, mask = extend_canvas(picture, left=3, right=5, bottom=7)
    assert canvas.size == mask.size == (20, 17)
    kept = np.asarray(mask) == 0
    assert kept.sum() == 120
    assert np.array_equal(np.asarray(canvas)[:10, 3:15], np.asarray(picture))
    [painted] = pipeline(image=canvas, mask_image=mask, **CALL).images
    assert painted.size == (20, 17)
    assert np.array_equal(np.asarray(painted)[:10, 3:15], np.asarray(picture))
    assert (np.asarray(painted) != np.asarray(canvas))[~kept].mean() > 0.9
    for sides in ({}, {"left": -4}, {"top": 1.5}):
        with pytest.raises(ArchError, match="wanted whole numbers of px, at least one of them above 0"):
            extend_canvas(picture, **sides)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mask_image": _box(16, 24, 0, 0, 4, 4)}, "give the image too"),
        ({"image": _picture(), "mask_image": "mask.png"}, "mask_image is str; wanted PIL images"),
        ({"image": _picture(), "mask_image": []}, "mask_image is an empty list"),
        ({"image": _picture(), "mask_image": [_box(16, 24, 0, 0, 4, 4)] * 2}, "2 masks for 1 images"),
        ({"image": _picture(), "mask_image": np.zeros((16, 24, 3))}, "16 masks for 1 images"),
        ({"image": _picture(), "mask_image": np.full((16, 24), 2.0)}, "values from 2 to 2; wanted floats"),
        ({"image": _picture(), "mask_image": np.full((16, 24), np.nan)}, "values from nan"),
        ({"image": _picture(), "mask_image": np.zeros((16, 24), np.int32)}, "torch.int32 values"),
        ({"image": [], "mask_image": np.zeros((16, 24))}, "image is an empty list"),
        (
            {"image": _picture(), "mask_image": np.zeros((16, 24)), "height": 18},
            "height 18 is not a multiple",
        ),
        ({"image": "a.png"}, "image is str; wanted PIL images"),
    ],
)
def test_wrong_masks_are_named(pipeline: L2PPipeline, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ArchError, match=complaint):
        pipeline(**options, **CALL)

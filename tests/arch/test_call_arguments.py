"""Arguments of a pipeline's call that are of another kind: one line names them, before anything is drawn."""

from typing import Any

import numpy as np
import pytest
import torch
from l2p_arch import ArchError, L2PPipeline
from l2p_mini.paths import PIXEL_MODEL

BAD: dict[str, list[Any]] = {
    "prompt": [5, (text for text in ["a"]), {"a", 5}, ["a", 5], [["a"]], b"a", {"a": 1}],
    "negative_prompt": [5, b"", {"a": 1}, [5]],
    "height": [0, 33, 16.5, "32", float("nan")],
    "num_inference_steps": [0, 1.5, "3", None],
    "num_images_per_prompt": [0, 1.5, "2", None, True],
    "guidance_scale": ["2", None, True, [1.5], float("nan")],
    "guidance_rescale": ["2", None, 2, -1],
    "distilled_guidance_scale": ["3", True],
    "noise_shift": ["3", [3], True, 0, float("nan")],
    "polish": ["0.2", ["0.2"], [0.2, 1], 1, True, float("nan"), [None]],
    "seeds": ["0", ["0"], [1.5], [None], [0, 1], {0: 1}, 7],
    "generator": [5, "x", [None], [torch.Generator(), 5]],
    "latents": ["x", np.zeros((1, 3, 32, 32)), torch.zeros(1, 3, 16, 16)],
    "sigmas": [["a"], 5, "x", [], [0.5, 0.9], [None]],
    "prompt_embeds": [5, "x", [5]],
    "max_sequence_length": [0, 1.5, "x", True],
    "on_step": [5, "print"],
    "callback_on_step_end": [5, lambda *_: 5, lambda *_: {"x_t": 5}, lambda *_: {"x_t": torch.zeros(1)}],
    "callback_on_step_end_tensor_inputs": [5, "x_t", ["foo"]],
    "output_type": ["jpeg", None],
}


@pytest.fixture(scope="module")
def pipeline() -> L2PPipeline:
    pipeline: L2PPipeline = L2PPipeline.from_pretrained(PIXEL_MODEL)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", BAD)
def test_an_argument_of_another_kind_is_named(pipeline: L2PPipeline, name: str) -> None:
    for value in BAD[name]:
        call: dict[str, Any] = {
            "prompt": "two",
            "height": 32,
            "width": 32,
            "num_inference_steps": 1,
            "seeds": [0],
        }
        call["guidance_scale"] = 1.0
        if name == "prompt_embeds":
            del call["prompt"]
        if name == "generator":
            del call["seeds"]
        with pytest.raises(ArchError) as raised:
            pipeline(**{**call, name: value})
        assert "\n" not in str(raised.value), value


def test_numbers_of_numpy_and_torch_are_numbers(pipeline: L2PPipeline) -> None:
    images = pipeline(
        ("two", "three"),
        height=np.int64(32),
        width=32,
        num_inference_steps=np.int32(1),
        guidance_scale=np.float32(1.5),
        noise_shift=np.float64(3),
        num_images_per_prompt=np.int64(1),
        seeds=torch.tensor([3, 4]),
        polish=np.float32(0),
    ).images
    assert len(images) == 2


def test_a_callback_may_answer_nothing_or_the_same_state(pipeline: L2PPipeline) -> None:
    call: dict[str, Any] = {
        "height": 32,
        "width": 32,
        "num_inference_steps": 2,
        "seeds": [0],
        "output_type": "pt",
    }
    plain = pipeline("two", **call).images
    for answer in (lambda *_: None, lambda *_: {}, lambda *given: given[-1]):
        assert torch.equal(pipeline("two", callback_on_step_end=answer, **call).images, plain)

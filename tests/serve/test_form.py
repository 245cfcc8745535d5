"""From the fields of the page to a request."""

from typing import Any

import pytest
from l2p_serve import Sampling, ServeError
from l2p_serve.page.form import request_of

FIELDS: dict[str, Any] = {
    "prompt": "a ring",
    "negative_prompt": None,
    "seed": 3,
    "new_seed": False,
    "images": 2,
    "with_source": False,
    "image": None,
    "strength": 0.6,
    "mask": None,
    "height": 64,
    "width": 96,
    "steps": 8,
    "guidance": 1.5,
    "shift": 0,
    "adapter_0": 0.5,
}


def test_what_the_form_has_no_field_for_is_the_models_own() -> None:
    asked = request_of(FIELDS, Sampling(height=32, noise_shift=4.0, distilled_guidance_scale=2.5))
    assert asked.sampling == Sampling(
        height=64,
        width=96,
        num_inference_steps=8,
        guidance_scale=1.5,
        noise_shift=None,
        distilled_guidance_scale=2.5,
    )
    assert (asked.prompt, asked.negative_prompt, asked.seed, asked.images) == ("a ring", "", 3, 2)
    assert asked.adapter_weights == (0.5,)


@pytest.mark.parametrize(
    "name, value", [("steps", "many"), ("adapter_0", "strong"), ("shift", None), ("seed", 1e999)]
)
def test_a_value_of_another_type_is_said_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(ServeError, match="a setting is missing or no number"):
        request_of(FIELDS | {name: value}, Sampling())

"""Settings of a surgery and options of a pipeline are refused before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from l2p_arch.errors import ArchError
from l2p_arch.sampling.call_options import check_call
from l2p_arch.surgery.settings_check import check_surgery_settings

USUAL: dict[str, Any] = {
    "recipe": "paper",
    "patch_size": 16,
    "head_channels": (64, 128, 256, 512),
    "initialisation": "auto",
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"initialisation": "fitted+kaiming+gated"},  # the images that it needs count as being there
        {"head_channels": (), "initialisation": "default"},
        {"recipe": "aligned"},
        {"recipe": "aligned", "decoder": "neighbours", "initialisation": "zero-output"},
    ],
)
def test_settings_that_convert_takes_pass(changes: dict[str, Any]) -> None:
    check_surgery_settings(**{**USUAL, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_channels": (8,) * 5}, "surgery.head_channels: "),
        ({"initialisation": "magic"}, "surgery.initialisation: unknown initialisation 'magic'"),
        ({"decoder": "neighbours"}, "surgery.decoder is 'neighbours', which belongs to surgery.recipe"),
        ({"reading": "wiener"}, "surgery.reading is 'wiener', which belongs to surgery.recipe"),
        ({"recipe": "aligned", "reading": "magic"}, "surgery.reading: unknown reading 'magic'"),
        ({"recipe": "aligned", "initialisation": "detail"}, "surgery.initialisation: "),
        ({"recipe": "aligned", "decoder": "magic"}, "surgery.decoder: unknown decoder 'magic'"),
        ({"recipe": "aligned", "head_channels": ()}, 'surgery.recipe = "aligned" needs a Detailer Head'),
    ],
)
def test_a_setting_that_does_not_fit_is_named_with_its_table(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ArchError) as error:
        check_surgery_settings(**{**USUAL, **changes}, table="surgery.")
    assert str(error.value).startswith(said)


def test_an_option_that_a_pipeline_does_not_take_is_named_as_it_was_given(tmp_path: Path) -> None:
    index = tmp_path / "model_index.json"
    options = {"guidance_scale": "--guidance", "num_inference_step": "source.num_inference_step"}
    check_call(tmp_path, options)  # no pipeline: for others to refuse
    index.write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    check_call(tmp_path, options)
    index.write_text(json.dumps({"_class_name": "ZImagePipeline"}))
    check_call(tmp_path, {"guidance_scale": "--guidance"})
    with pytest.raises(ArchError, match=r"source\.num_inference_step is no argument of the model's ZImage"):
        check_call(tmp_path, options)
    with pytest.raises(ArchError, match="did you mean num_inference_steps"):
        check_call(tmp_path, options)
    with pytest.raises(ArchError, match="--height is set for each image by the run"):
        check_call(tmp_path, {"height": "--height"})

"""Exports, deltas, cards and patchify, called from Python with what their types forbid: one line, no file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import (
    ArchError,
    L2PPipeline,
    export_gguf,
    export_public,
    fingerprint,
    identify,
    import_public,
    merge_delta,
    patches_to_pixels,
    pixels_to_patches,
    quantise,
    save_delta,
    weights_hash,
    write_model_card,
)
from l2p_mini.paths import PIXEL_MODEL

_NO_PATHS: list[Any] = [None, 3, 1.5, ["x"], {}, b"x", ""]
_IMAGES = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize("bad", _NO_PATHS)
@pytest.mark.parametrize(
    ("call", "places"),
    [
        (export_gguf, 2),
        (export_public, 2),
        (import_public, 3),
        (quantise, 2),
        (identify, 1),
        (weights_hash, 1),
        (merge_delta, 3),
    ],
)
def test_what_is_no_path_is_refused_wherever_a_path_is_wanted(
    call: Any, places: int, bad: Any, tmp_path: Path
) -> None:
    for place in range(places):
        given: list[Any] = [PIXEL_MODEL, *[tmp_path / "out"] * (places - 1)]
        given[place] = bad
        with pytest.raises(ArchError, match=r"wanted a path"):
            call(*given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", ["no", 1, None, [True]])
def test_a_flag_is_true_or_false(bad: Any, tmp_path: Path) -> None:
    for call in (export_gguf, export_public, quantise):
        with pytest.raises(ArchError, match=r"overwrite is .*; wanted True or False"):
            call(PIXEL_MODEL, tmp_path / "out.x", overwrite=bad)
    with pytest.raises(ArchError, match=r"comfyui is"):
        export_public(PIXEL_MODEL, tmp_path / "out.x", comfyui=bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [None, 3, "weights", [torch.zeros(1)]])
def test_a_delta_is_of_tensors_by_name(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(ArchError):
        save_delta(bad, PIXEL_MODEL, tmp_path / "delta.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_card_says_what_is_text(tmp_path: Path) -> None:
    for origin, title in ((None, None), (3, None), (Path("x"), None), ("trained", 3), ("trained", ["x"])):
        with pytest.raises(ArchError, match=r"wanted a text"):
            write_model_card(tmp_path, origin, title=title)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [None, 3, "", ["x"]])
def test_a_fingerprint_is_of_names_with_shapes(bad: Any) -> None:
    with pytest.raises(ArchError, match=r"wanted names with their shapes"):
        fingerprint(bad)


@pytest.mark.parametrize("bad", [None, "16", 0, -16, 1.5, True, torch.zeros(2)])
def test_a_patch_has_a_whole_number_of_pixels(bad: Any) -> None:
    for call in (pixels_to_patches, patches_to_pixels):
        with pytest.raises(ArchError):
            call(_IMAGES, bad)


@pytest.mark.parametrize("bad", [None, 3, [[1.0]], torch.zeros(3, 32, 32), torch.zeros(0)])
def test_what_is_patched_are_images(bad: Any) -> None:
    for call in (pixels_to_patches, patches_to_pixels):
        with pytest.raises(ArchError, match=r"wanted"):
            call(bad, 16)
    with pytest.raises(ArchError, match=r"channels"):
        patches_to_pixels(torch.zeros(1, 100, 2, 2), 16)


def test_an_embedding_of_another_width_and_an_endless_picture_are_refused() -> None:
    pipeline = L2PPipeline.from_pretrained(PIXEL_MODEL)
    pipeline.set_progress_bar_config(disable=True)
    small = {"height": 64, "width": 64, "num_inference_steps": 1}
    with pytest.raises(ArchError, match=r"caption has the shape \(4, 7\).*of width 128"):
        pipeline(prompt_embeds=[torch.zeros(4, 7)], **small)
    with pytest.raises(ArchError, match=r"no size of a picture"):
        pipeline("a red circle", height=1 << 24, width=64, num_inference_steps=1)
    for bad in (None, 3, ["x"], torch.zeros(1), ""):
        with pytest.raises(ArchError, match=r"wanted a path"):
            pipeline.load_lora_weights(bad)

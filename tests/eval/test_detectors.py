"""The real detector and colour classes with tiny random weights: loading, formats and geometry."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from l2p_eval.errors import EvalError
from l2p_eval.geneval import check_prompts, judge, parse_row
from l2p_eval.geneval.detectors import (
    COLORS,
    ClipColors,
    Mask2FormerDetector,
    MaskedDetection,
    box_of,
    cut_out,
)
from PIL import Image


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_attention_heads=2,
        num_queries=6,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    folder = tmp_path_factory.mktemp("mask2former")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(write_clip: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"), 77)


def test_a_detection_has_a_class_a_mask_and_a_box_around_it(mask2former: Path) -> None:
    detector = Mask2FormerDetector(mask2former)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8))
    found = detector.detect(image)
    assert found, "six random queries should see something"
    assert [d.confidence for d in found] == sorted((d.confidence for d in found), reverse=True)
    for detection in found:
        assert detection.label in ("cat", "dog")
        assert detection.mask.shape == (48, 80)
        assert detection.box == box_of(detection.mask)


def test_classes_have_the_names_of_genevals_prompts(mask2former: Path, tmp_path: Path) -> None:
    """Published checkpoints say mouse, remote, keyboard (some sofa, tvmonitor); GenEval's prompts do not."""
    folder = shutil.copytree(mask2former, tmp_path / "coco")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "mouse", "1": "sofa"}, {"mouse": 0, "sofa": 1}
    (folder / "config.json").write_text(json.dumps(config))
    detector = Mask2FormerDetector(folder)
    assert detector.classes == {"computer mouse", "couch"}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8))
    assert {found.label for found in detector.detect(image)} <= detector.classes
    row = {"tag": "single_object", "include": [{"class": "mouse", "count": 1}], "prompt": "a mouse"}
    with pytest.raises(EvalError, match="did you mean 'computer mouse'"):
        check_prompts([parse_row(row)], detector)


def test_a_box_between_pixels_is_rounded_as_pillow_rounds_it() -> None:
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    box = (1.6, 2.4, 7.5, 8.6)
    seen = MaskedDetection(label="x", confidence=1, box=box, mask=np.ones((10, 10), bool))
    assert np.array_equal(np.asarray(cut_out(image, seen)), np.asarray(image.crop(box)))


def test_a_colour_is_one_of_the_ten_and_depends_on_the_object_only(clip: Path) -> None:
    colors = ClipColors(clip)
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:24, 8:24] = True
    detection = MaskedDetection(label="cat", confidence=1.0, box=(8, 8, 24, 24), mask=mask)
    image = Image.new("RGB", (32, 32), "red")
    other = image.copy()
    other.paste("green", (0, 0, 32, 6))
    assert colors.classify(image, detection) in COLORS
    assert colors.classify(image, detection) == colors.classify(other, detection)


def test_both_together_judge_a_prompt(mask2former: Path, clip: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8))
    mask = np.ones((48, 80), dtype=bool)
    cat = MaskedDetection(label="cat", confidence=0.9, box=(0, 0, 80, 48), mask=mask)
    seen = ClipColors(clip).classify(image, cat)
    for color in COLORS:
        row = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": color}], "prompt": "a cat"}
        assert judge(parse_row(row), [cat], image=image, colors=ClipColors(clip)).correct is (color == seen)


def test_what_surrounds_the_object_is_grey() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:6, 3:8] = True
    mask[2, 3] = False
    box = box_of(mask)
    assert box == (3.0, 2.0, 8.0, 6.0)
    cut = cut_out(
        Image.new("RGB", (10, 10), "red"), MaskedDetection(label="x", confidence=1, box=box, mask=mask)
    )
    assert cut.size == (5, 4)
    assert cut.getpixel((0, 0)) == (0x99, 0x99, 0x99)
    assert cut.getpixel((1, 1)) == (255, 0, 0)
    assert box_of(np.zeros((4, 4), dtype=bool)) is None


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    for kind in (Mask2FormerDetector, ClipColors):
        with pytest.raises(EvalError, match="no transformers model directory"):
            kind(tmp_path)


def test_networks_that_answer_nan_are_refused(
    mask2former: Path, clip: Path, with_nan: Callable[[Path], Path]
) -> None:
    image = Image.new("RGB", (64, 64), "red")
    spoiled = with_nan(mask2former)
    with pytest.raises(EvalError, match=r"Mask2Former .* answers NaN"):
        Mask2FormerDetector(spoiled).detect(image)
    shutil.rmtree(spoiled)
    seen = MaskedDetection(label="cat", confidence=1.0, box=(0, 0, 64, 64), mask=np.ones((64, 64), bool))
    with pytest.raises(EvalError, match=r"CLIP .* answers NaN"):
        ClipColors(with_nan(clip)).classify(image, seen)

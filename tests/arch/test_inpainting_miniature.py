"""Inpainting with the trained miniature: what is painted in is what was asked for, by the exact detector."""

from typing import Any

import numpy as np
import pytest
from l2p_arch.sampling.painter import load_pipeline, paint_images, sampling_defaults
from l2p_mini.detector import Detection, ExactDetector
from l2p_mini.paths import PIXEL_MODEL
from l2p_mini.world import Object, Scene, render
from PIL import Image, ImageDraw

SEEDS = range(8)
WANTED = 6  # of them
AROUND = 5  # px of background that may change around the square


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(PIXEL_MODEL, device="cpu", dtype="float32")


def scene() -> tuple[Image.Image, Image.Image, Detection]:
    """A red square left of a blue circle, a mask over the square alone, and the square as it is detected."""
    objects = (
        Object(shape="square", color="red", x=0.29, y=0.5, radius=0.2),
        Object(shape="circle", color="blue", x=0.74, y=0.5, radius=0.17),
    )
    picture = render(Scene(background="gray", objects=objects))
    found = {each.label: each for each in ExactDetector().detect(picture)}
    assert found.keys() == {"square", "circle"}
    left, top, right, bottom = found["square"].box
    mask = Image.new("L", picture.size)
    corners = (left - AROUND, top - AROUND, right + AROUND, bottom + AROUND)
    ImageDraw.Draw(mask).rectangle(corners, fill=255)
    assert found["circle"].box[0] > corners[2], "the mask leaves the circle alone"
    return picture, mask, found["square"]


def test_a_red_square_becomes_a_ring_and_nothing_else_changes(pipeline: Any) -> None:
    picture, mask, square = scene()
    prompt = "a red ring left of a blue circle on a gray background"
    options = sampling_defaults(PIXEL_MODEL).options | {"image": picture, "mask_image": mask}
    made = paint_images(pipeline, [prompt] * len(SEEDS), list(SEEDS), **options)
    kept, before = np.asarray(mask) == 0, np.asarray(picture)
    middle = ((square.box[0] + square.box[2]) / 2, (square.box[1] + square.box[3]) / 2)
    rings = 0
    for image in made:
        assert np.array_equal(np.asarray(image)[kept], before[kept])
        found = ExactDetector().detect(image)
        assert any((each.label, each.color) == ("circle", "blue") for each in found)
        rings += any(
            (each.label, each.color) == ("ring", "red")
            and each.confidence > 0.5
            and each.box[0] < middle[0] < each.box[2]
            and each.box[1] < middle[1] < each.box[3]
            for each in found
        )
    assert rings >= WANTED, f"{rings} of {len(SEEDS)} are a red ring where the square was"

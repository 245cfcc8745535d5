"""The miniature's world: what is drawn is what the prompt says, and the detector reads it back exactly."""

import random

import numpy as np
import pytest
from l2p_mini.detector import ExactDetector
from l2p_mini.grammar import (
    HELD_OUT_MODULUS,
    TEMPLATES,
    draw_prompt,
    draw_scene,
    geneval_row,
    is_held_out,
    parse,
    write_evaluation,
    write_grammar,
)
from l2p_mini.paths import EVALUATION_METADATA, GRAMMAR
from l2p_mini.world import BACKGROUNDS, COLORS, Object, Scene, render
from PIL import Image, ImageFilter


def scenes(count: int, seed: int) -> list[tuple[str, Scene]]:
    rng = random.Random(seed)
    prompts = [draw_prompt(rng) for _ in range(count)]
    return [(prompt, draw_scene(parse(prompt), rng)) for prompt in prompts]


def reads_back(image: Image.Image, scene: Scene) -> bool:
    detector = ExactDetector()
    found = sorted((d.label, d.color) for d in detector.detect(image) if d.confidence > 0.3)
    return (
        found == sorted((o.shape, o.color) for o in scene.objects)
        and detector.background(image) == scene.background
    )


def test_detector_is_exact_on_a_thousand_rendered_scenes() -> None:
    assert all(reads_back(render(scene, 64), scene) for _, scene in scenes(1000, 1))


@pytest.mark.parametrize("size", [48, 96, 256, 512])
def test_detector_reads_any_resolution(size: int) -> None:
    assert all(reads_back(render(scene, size), scene) for _, scene in scenes(12, size))


def test_detector_survives_blur() -> None:
    blurred = [
        (render(scene, 64).filter(ImageFilter.GaussianBlur(1.0)), scene) for _, scene in scenes(150, 2)
    ]
    assert sum(reads_back(image, scene) for image, scene in blurred) == len(blurred)


def test_detector_survives_noise() -> None:
    rng = np.random.default_rng(0)
    right = 0
    for _, scene in scenes(150, 3):
        noisy = np.asarray(render(scene, 64)) + rng.normal(0, 12, (64, 64, 3))
        right += reads_back(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), scene)
    assert right >= 148


def test_detector_separates_touching_objects_of_two_colours() -> None:
    left = Object(shape="square", color="red", x=0.36, y=0.5, radius=0.17)
    right = Object(shape="square", color="blue", x=0.64, y=0.5, radius=0.17)
    assert reads_back(
        render(Scene(background="gray", objects=(left, right)), 64),
        Scene(background="gray", objects=(left, right)),
    )


def test_boxes_are_where_the_objects_are() -> None:
    for _, scene in scenes(50, 4):
        found = {(d.label, d.color): d.box for d in ExactDetector().detect(render(scene, 64))}
        for item in scene.objects if len({o.shape for o in scene.objects}) == len(scene.objects) else ():
            x0, y0, x1, y1 = found[item.shape, item.color]
            assert abs((x0 + x1) / 2 - item.x * 64) < 1 and abs((y0 + y1) / 2 - item.y * 64) < 2.5
            assert x1 - x0 <= 2 * item.radius * 64 + 1


def test_an_empty_or_noisy_picture_has_no_sure_object() -> None:
    plain = Image.new("RGB", (64, 64), BACKGROUNDS["gray"])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert ExactDetector().detect(plain) == []
    assert all(d.confidence < 0.3 for d in ExactDetector().detect(noise))


def test_a_larger_picture_adds_detail_and_nothing_else() -> None:
    for _, scene in scenes(6, 5):
        small, large = render(scene, 64), render(scene, 256)
        shrunk, original = np.asarray(large.reduce(4), float), np.asarray(small, float)
        assert np.abs(shrunk - original).mean() < 1.5
        enlarged = np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC), float)
        assert np.abs(np.asarray(large, float) - enlarged).mean() > 5 * np.abs(shrunk - original).mean()


def test_every_sentence_is_read_back_and_drawn_true() -> None:
    for prompt, scene in scenes(500, 6):
        meaning = parse(prompt)
        assert len(scene.objects) == len(meaning.objects)
        for item, (shape, color) in zip(scene.objects, meaning.objects, strict=True):
            assert item.shape == shape and (color is None or item.color == color)
        if meaning.relation:
            a, b = scene.objects
            dx, dy = a.x - b.x, a.y - b.y
            assert {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[meaning.relation]


def test_other_text_is_refused() -> None:
    for text in ("", "a red", "two circle", "a red circle left of", "A photo of a dog", "five circles"):
        with pytest.raises(ValueError, match="not a sentence"):
            parse(text)


def test_shipped_grammar_and_evaluation_set_are_the_generated_ones(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_grammar(tmp_path / "grammar.toml")
    write_evaluation(tmp_path / "evaluation.jsonl", per_tag=20)
    assert (tmp_path / "grammar.toml").read_text() == GRAMMAR.read_text()
    assert (tmp_path / "evaluation.jsonl").read_text() == EVALUATION_METADATA.read_text()


def test_evaluation_covers_six_tasks_with_held_out_prompts() -> None:
    import json

    rows = [json.loads(line) for line in EVALUATION_METADATA.read_text().splitlines()]
    assert {row["tag"] for row in rows} == set(TEMPLATES)
    assert all(is_held_out(row["prompt"]) for row in rows)
    assert all(row == geneval_row(row["prompt"]) for row in rows)
    share = sum(is_held_out(draw_prompt(random.Random(i))) for i in range(4000)) / 4000
    assert abs(share - 1 / HELD_OUT_MODULUS) < 0.05


def test_palette_leaves_room_for_the_pattern() -> None:
    assert all(20 <= c <= 235 for rgb in [*COLORS.values(), *BACKGROUNDS.values()] for c in rgb)

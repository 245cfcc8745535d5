"""Scores say what defines them, are never NaN, and what is kept belongs to the content that it is about."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from l2p_eval.dpg.benchmark import DpgPrompt, Question
from l2p_eval.errors import EvalError
from l2p_eval.evaluation import Evaluation, Scored, evaluate
from l2p_eval.geneval import parse_row
from l2p_eval.layout import write_image, write_prompts
from l2p_eval.painting import Model, Painting, Pictures, model_settings, model_sha256, paint
from l2p_eval.scores import METRICS, Score, dpg, geneval, patch_grid, retention, sha256_of_images
from PIL import Image

PROMPTS = [
    DpgPrompt(
        item_id=f"item{number}",
        text=f"text {number}",
        questions=tuple(
            Question(number=n, text=f"is it {n} of {number}?", category="entity") for n in (1, 2)
        ),
    )
    for number in range(3)
]


class Bright:
    """A judge that says yes about light pictures, and counts."""

    name = "bright"
    weights_sha256 = "0"
    preprocessing = "none"

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, image: Image.Image, question: str) -> bool:
        self.asked += 1
        return bool(np.asarray(image).mean() > 127)


def item_images(folder: Path, *grays: int) -> Pictures:
    """A folder of ITEM_ID.png."""
    folder.mkdir(exist_ok=True)
    for prompt, gray in zip(PROMPTS, grays, strict=True):
        Image.new("RGB", (8, 8), (gray, gray, gray)).save(folder / f"{prompt.item_id}.png")
    return Pictures(name="x", folder=folder)


def test_answers_belong_to_the_content_of_the_images(tmp_path: Path) -> None:
    """Black, then painted over in place: every changed image is asked about again, and only those."""
    judge, kept = Bright(), tmp_path / "answers.jsonl"
    black = dpg(item_images(tmp_path / "i", 0, 0, 0), judge, prompts=PROMPTS, mode="fixed", answers=kept)
    assert (black.headline, judge.asked) == (0.0, 6)
    again = dpg(item_images(tmp_path / "i", 0, 0, 0), judge, prompts=PROMPTS, mode="fixed", answers=kept)
    assert (again.headline, judge.asked) == (0.0, 6)
    one = dpg(item_images(tmp_path / "i", 0, 255, 0), judge, prompts=PROMPTS, mode="fixed", answers=kept)
    assert (one.headline, judge.asked) == (pytest.approx(100 / 3), 8)
    moved = dpg(item_images(tmp_path / "j", 0, 255, 0), judge, prompts=PROMPTS, mode="fixed", answers=kept)
    assert (moved.headline, judge.asked) == (one.headline, 8)  # where they lie does not count
    back = dpg(item_images(tmp_path / "i", 0, 0, 0), judge, prompts=PROMPTS, mode="fixed", answers=kept)
    assert (back.headline, judge.asked) == (0.0, 8)


def test_answers_belong_to_judge_question_and_cut(tmp_path: Path) -> None:
    kept, pictures = tmp_path / "answers.jsonl", item_images(tmp_path / "i", 0, 255, 90)
    known = {"prompts": PROMPTS, "mode": "fixed", "answers": kept}
    dpg(pictures, Bright(), **known)
    for change in (
        {"name": "other"},
        {"weights_sha256": "1"},
        {"preprocessing": "half"},
        {"identity": ["new"]},
    ):
        judge = Bright()
        for key, value in change.items():
            setattr(judge, key, value)
        dpg(pictures, judge, **known)
        assert judge.asked == 6, change
    edited = DpgPrompt(
        item_id="item1",
        text="t",
        questions=(PROMPTS[1].questions[0], Question(number=2, text="?", category="e")),
    )
    judge = Bright()
    dpg(pictures, judge, **known | {"prompts": [PROMPTS[0], edited, PROMPTS[2]]})
    assert judge.asked == 2
    dpg(pictures, judge := Bright(), grid=4, **known)
    assert judge.asked == 6  # of twelve crops of one colour each, equal ones are one picture


def painted(folder: Path, gray: int, samples: int) -> Pictures:
    """What `paint` leaves, with pictures that differ by their number."""
    for index in range(len(PROMPTS)):
        for sample in range(samples):
            write_image(Image.new("RGB", (8, 8), (gray, index, sample)), folder, index, sample)
    return Pictures(name="m", folder=folder, settings={"weights_sha256": str(gray)})


def test_more_images_of_a_prompt_are_asked_about(tmp_path: Path) -> None:
    judge, kept = Bright(), tmp_path / "answers.jsonl"
    known = {"prompts": PROMPTS, "mode": "fixed", "answers": kept}
    assert dpg(painted(tmp_path / "m", 9, 1), judge, **known).definition["n"] == "3 images of 3 prompts"
    assert judge.asked == 6
    four = dpg(painted(tmp_path / "m", 9, 4), judge, images_per_prompt=4, **known)
    assert four.definition["n"] == "12 images of 3 prompts" and judge.asked == 24
    dpg(painted(tmp_path / "m", 250, 4), judge, images_per_prompt=4, **known)  # another model's
    assert judge.asked == 48


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],  # a crash cut a line
        lambda text: "no json\n[1, 2]\n{}\n" + text,
        lambda text: json.dumps({"judge": "bright", "csv": "x"}) + "\n" + text,  # as an earlier version began
        lambda text: text.replace("[false, false]", "[false]"),
        lambda text: text.replace("false, false", '"no", "no"'),
    ],
)
def test_a_damaged_ledger_only_costs_questions(tmp_path: Path, spoil: Any) -> None:
    kept, pictures = tmp_path / "answers.jsonl", item_images(tmp_path / "i", 0, 255, 90)
    known = {"prompts": PROMPTS, "mode": "fixed", "answers": kept}
    first = dpg(pictures, Bright(), **known)
    kept.write_text(spoil(kept.read_text()))
    assert dpg(pictures, Bright(), **known).values == first.values
    dpg(pictures, judge := Bright(), **known)
    assert judge.asked == 0


def test_a_judge_that_always_says_the_same_is_said(tmp_path: Path) -> None:
    pictures = painted(tmp_path / "m", 250, 2)
    score = dpg(pictures, Bright(), prompts=PROMPTS, mode="fixed", images_per_prompt=2)
    assert score.headline == 0 or "says" in score.warnings[0]
    assert any("the judge says no to all 12 questions" in text for text in score.warnings)
    assert not dpg(item_images(tmp_path / "i", 0, 255, 0), Bright(), prompts=PROMPTS, mode="fixed").warnings


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_score_is_nan_or_infinite(value: float) -> None:
    with pytest.raises(EvalError, match="which is no score"):
        Score(values={"fine": 1.0, "odd": value}, definition={})


def test_retention_above_the_source_and_of_nothing_is_said() -> None:
    assert retention(0.7, 0.875).share == pytest.approx(0.8) and not retention(0.7, 0.875).note
    assert retention(0.5, 0.5).note == ""
    above = retention(0.9, 0.6, images=24)
    assert (
        above.share == pytest.approx(1.5) and "0.900 on 24 images, more than its source's 0.600" in above.note
    )
    assert above.odd and "chance, or a source that is broken" in above.note
    near = retention(0.967, 0.958, images=120)
    assert not near.odd and "by no more than chance explains (up to 0.049)" in near.note
    assert retention(0.967, 0.958, images=12_000).odd and retention(0.967, 0.958).odd
    assert not retention(0.7, 0.875, images=120).odd and not retention(0.4, 0.0, images=120).odd
    assert retention(0.4, 0.0).share is None and "the source scores 0" in retention(0.4, 0.0).note
    assert "the source scores 0" in retention(0.0, 0.0).note


def test_a_reference_set_is_its_files_contents_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(path)
    before = sha256_of_images(paths)
    assert before == sha256_of_images(paths) != sha256_of_images(paths[::-1])
    Image.new("RGB", (4, 4), (1, 1, 0)).save(paths[1])
    assert before != sha256_of_images(paths)


def test_a_model_is_all_bytes_of_its_configs_and_weights(tmp_path: Path) -> None:
    (tmp_path / "a" / "transformer").mkdir(parents=True)
    weights = tmp_path / "a" / "transformer" / "model.safetensors"
    weights.write_bytes(bytes(6 << 20))
    (tmp_path / "a" / "model_index.json").write_text("{}")
    before = model_sha256(tmp_path / "a")
    content = bytearray(weights.read_bytes())
    content[3 << 20] = 1  # far from its first and last MiB
    weights.write_bytes(content)
    changed = model_sha256(tmp_path / "a")
    assert changed != before
    (tmp_path / "a" / "model_index.json").write_text("{ }")
    assert model_sha256(tmp_path / "a") != changed
    assert model_settings(tmp_path / "a", "float32", {"steps": 2})["model"] == "a"


def plain(device: str) -> Any:
    """A model that paints one gray."""
    return lambda prompts, seeds: [Image.new("RGB", (32, 32), (80, 80, 80)) for _ in prompts]


def test_what_painted_is_part_of_what_fills_a_folder(tmp_path: Path) -> None:
    """Weights, sampling, prompts, count and seed: another of any is refused by name, never reused."""
    settings = {"weights_sha256": "a", "guidance_scale": 2.0}
    model, silent = Model(load=plain, settings=settings), lambda done, total, what: None
    how = Painting(seed=3, workers=0)
    paint("m", model, ["p", "q"], tmp_path / "i", how, silent)
    for other, prompts, painting, message in (
        (
            Model(load=plain, settings=settings | {"weights_sha256": "b"}),
            ["p", "q"],
            how,
            'weights_sha256: "a" -> "b"',
        ),
        (
            Model(load=plain, settings=settings | {"guidance_scale": 3.0}),
            ["p", "q"],
            how,
            "guidance_scale: 2.0 -> 3.0",
        ),
        (model, ["p", "r"], how, "other prompts or seeds"),
        (model, ["p", "q"], Painting(seed=4, workers=0), "other prompts or seeds"),
        (model, ["p", "q"], Painting(seed=3, workers=0, images_per_prompt=4), "other prompts or seeds"),
    ):
        with pytest.raises(EvalError, match=message):
            paint("m", other, prompts, tmp_path / "i", painting, silent)


class Blind:
    """A detector that never fires."""

    name = "blind"

    def detect(self, image: Image.Image) -> list[Any]:
        return []


def test_a_detector_that_never_fires_is_marked_in_results_and_pages(tmp_path: Path) -> None:
    row = parse_row({"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"})
    write_prompts(tmp_path / "i", [row])
    write_image(Image.new("RGB", (8, 8)), tmp_path / "i", 0, 0)
    said: list[str] = []
    outcome = evaluate(
        Evaluation(
            metric="geneval",
            entries=[Scored(name="m", folder=tmp_path / "i")],
            score=lambda pictures, progress: geneval(pictures, Blind(), progress=progress),
        ),
        tmp_path / "out",
        {},
        lambda done, total, what: None,
        said.append,
    )
    wanted = "the detector found no object at all in 1 images"
    assert wanted in said[0] and said[0].startswith("m: ")
    read = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        wanted in read["entries"][0]["warnings"][0]
        and outcome.results["entries"][0]["scores"]["objects"] == 0
    )
    for page in ("report.html", "report.md"):
        assert wanted in (tmp_path / "out" / page).read_text()


def test_the_table_of_metrics_holds_functions(tmp_path: Path) -> None:
    assert METRICS["patch-grid"].score is patch_grid and METRICS["geneval"].score is geneval
    assert all(callable(metric.score) and metric.about and metric.title for metric in METRICS.values())

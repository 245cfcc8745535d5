"""GenEval's rules on hand-computed cases, its summary, and its files."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_eval.errors import EvalError
from l2p_eval.geneval import ImageScore, check_prompts, judge, parse_row, read_metadata, relations, summarise
from l2p_eval.layout import read_folder, score_folder, write_image, write_prompts
from l2p_eval.painting import Pictures
from l2p_eval.scores import geneval
from PIL import Image


@dataclass(frozen=True)
class Found:
    """A detection as a detector would give it."""

    label: str
    box: tuple[float, float, float, float] = (0.0, 0.0, 10.0, 10.0)
    color: str | None = None
    confidence: float = 0.95


def ask(tag: str, include: list[dict[str, Any]], exclude: list[dict[str, Any]] | None = None) -> Any:
    return parse_row({"tag": tag, "include": include, "exclude": exclude or [], "prompt": "a prompt"})


CAT_AND_DOG = ask("two_object", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}])
THREE_CATS = ask("counting", [{"class": "cat", "count": 3}], [{"class": "cat", "count": 4}])
RED_CAT = ask("colors", [{"class": "cat", "count": 1, "color": "red"}])
DOG_LEFT_OF_CAT = ask(
    "position", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
)


def test_every_include_must_be_there() -> None:
    assert judge(CAT_AND_DOG, [Found("cat"), Found("dog"), Found("bird")]).correct
    verdict = judge(CAT_AND_DOG, [Found("cat")])
    assert not verdict.correct
    assert verdict.reason == "expected 1 dog, found 0"


def test_a_count_is_exact_through_the_exclude() -> None:
    cats = [Found("cat")] * 5
    assert [judge(THREE_CATS, cats[:n]).correct for n in range(6)] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]


def test_counting_wants_more_confidence_than_the_other_tags() -> None:
    unsure = Found("cat", confidence=0.5)
    assert judge(ask("single_object", [{"class": "cat", "count": 1}]), [unsure]).correct
    assert not judge(THREE_CATS, [unsure] * 3).correct
    assert judge(THREE_CATS, [Found("cat")] * 3 + [unsure]).correct  # the unsure fourth is not counted
    assert not judge(
        ask("single_object", [{"class": "cat", "count": 1}]), [Found("cat", confidence=0.3)]
    ).correct


def test_confidences_compare_in_float32_as_the_official_arrays_do() -> None:
    """float32(0.3) is 0.30000001 in float64; GenEval's own arrays do not find it above 0.3."""
    one = ask("single_object", [{"class": "cat", "count": 1}])
    for confidence, above in ((np.float32(0.3), False), (0.3 + 1e-9, False), (0.3 + 1e-7, True)):
        assert judge(one, [Found("cat", confidence=float(confidence))]).correct is above
    four = ask("counting", [{"class": "cat", "count": 1}])
    assert not judge(four, [Found("cat", confidence=float(np.float32(0.9)))]).correct


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.31, 0.5, 0.5000000001, 0.7, 0.9]), min_size=1, max_size=12), st.integers(1, 4)
)
def test_of_equal_confidences_the_last_counts_first(scores: list[float], count: int) -> None:
    """The official order, `argsort()[::-1]` of float32 scores, decides whose colours are asked."""
    found = [Found("cat", confidence=c, color=f"colour {i}") for i, c in enumerate(scores)]
    order = np.argsort(np.array(scores, np.float32), kind="stable")[::-1]
    first = [found[i].color for i in order[:count]]
    verdict = judge(ask("colors", [{"class": "cat", "count": count, "color": "red"}]), found)
    if len(scores) >= count:
        assert verdict.reason.endswith(f"found {', '.join(map(str, first))}")


@pytest.mark.parametrize(
    "broken", [{"confidence": math.nan}, {"confidence": math.inf}, {"box": (0, 0, math.nan, 9)}]
)
def test_a_detection_that_is_not_finite_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(EvalError, match="look for broken weights"):
        judge(CAT_AND_DOG, [Found("dog"), Found("cat", **broken)])


def test_at_most_sixteen_objects_of_a_class_are_seen() -> None:
    crowd = ask("counting", [{"class": "cat", "count": 16}], [{"class": "cat", "count": 17}])
    assert judge(crowd, [Found("cat")] * 30).correct


def test_colour_is_asked_of_the_most_confident_objects_only() -> None:
    red, blue = Found("cat", color="red"), Found("cat", color="blue", confidence=0.99)
    assert judge(RED_CAT, [red]).correct
    verdict = judge(RED_CAT, [red, blue])
    assert not verdict.correct
    assert verdict.reason == "expected 1 red cat, found blue"


def test_colour_comes_from_a_classifier_when_the_detector_names_none() -> None:
    class Red:
        def classify(self, image: Image.Image, detection: Found) -> str:
            return "red" if image.getpixel((0, 0)) == (255, 0, 0) else "blue"

    for color, correct in (("red", True), ("blue", False)):
        image = Image.new("RGB", (8, 8), color)
        assert judge(RED_CAT, [Found("cat")], image=image, colors=Red()).correct is correct
    with pytest.raises(EvalError, match="give a colour classifier"):
        judge(RED_CAT, [Found("cat")])


def test_position_is_relative_to_the_target() -> None:
    cat = Found("cat", box=(60, 40, 80, 60))
    assert judge(DOG_LEFT_OF_CAT, [cat, Found("dog", box=(0, 40, 20, 60))]).correct
    verdict = judge(DOG_LEFT_OF_CAT, [cat, Found("dog", box=(60, 0, 80, 20))])
    assert verdict.reason == "expected dog left of cat, found above"


def test_a_target_that_failed_cannot_be_a_reference() -> None:
    verdict = judge(DOG_LEFT_OF_CAT, [Found("dog")])
    assert verdict.reason.splitlines() == [
        "expected 1 cat, found 0",
        "nothing there for the dog to be left of",
    ]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 50, 10, 60), {"left of"}),
        ((100, 50, 110, 60), {"right of"}),
        ((50, 0, 60, 10), {"above"}),
        ((0, 0, 10, 10), {"left of", "above"}),  # on the diagonal both hold: 48 / 70.7 = 0.68
        ((51, 50, 61, 60), set()),  # within a tenth of both sizes
        ((47, 50, 57, 60), set()),  # 3 px off, 2 px dead: 1/3 of the offset remains
        ((45, 50, 55, 60), {"left of"}),  # 5 px off, 2 px dead: 3/5 remains
    ],
)
def test_relations_by_hand(box: tuple[int, int, int, int], expected: set[str]) -> None:
    assert relations(Found("a", box=box), Found("b", box=(50, 50, 60, 60))) == expected


boxes = st.tuples(*[st.floats(0, 100)] * 2, *[st.floats(1, 50)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(deadline=None)
@given(boxes, boxes)
def test_relations_are_antisymmetric(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    there, back = (
        relations(Found("a", box=a), Found("b", box=b)),
        relations(Found("b", box=b), Found("a", box=a)),
    )  # type: ignore[arg-type]
    assert {opposite[r] for r in there} == back


def score(tag: str, prompt_index: int, correct: bool) -> ImageScore:
    return ImageScore(
        prompt_index=prompt_index, sample=0, tag=tag, prompt="p", correct=correct, reason="", path="p.png"
    )


def test_overall_is_the_unweighted_mean_over_tags() -> None:
    scores = summarise(
        [
            score("colors", 0, True),
            score("colors", 0, False),
            score("colors", 1, False),
            score("colors", 1, False),
            score("counting", 2, True),
        ]
    )
    assert scores.tags == {"counting": 1.0, "colors": 0.25}
    assert scores.overall == 0.625  # not 2/5, the share of images
    assert (scores.images, scores.prompts) == (0.4, 2 / 3)
    assert scores.tag_counts == {"counting": 1, "colors": 4}


def test_no_scores_is_an_error() -> None:
    with pytest.raises(EvalError, match="no images"):
        summarise([])


ROWS = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"},
    {
        "tag": "position",
        "include": [
            {"class": "cat", "count": 1},
            {"class": "dog", "count": 1, "position": ["above", 0], "color": "red"},
        ],
        "prompt": "a red dog above a cat",
    },
    {
        "tag": "counting",
        "include": [{"class": "cat", "count": 2}],
        "exclude": [{"class": "cat", "count": 3}],
        "prompt": "two cats",
    },
]


def metadata_file(folder: Path, rows: list[Any]) -> Path:
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_metadata_survives_reading_and_writing(tmp_path: Path) -> None:
    prompts = read_metadata(metadata_file(tmp_path, ROWS))
    assert [prompt.to_row() for prompt in prompts] == [
        row | {"include": [dict(r) for r in row["include"]]} for row in ROWS
    ]


def test_prompts_of_a_kind_keep_it_and_each_kind_has_its_share(tmp_path: Path) -> None:
    cat = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}
    rows = [cat | {"kind": "known"}, cat | {"prompt": "a new cat", "kind": "new"}, cat]
    prompts = read_metadata(metadata_file(tmp_path, rows))
    assert [prompt.to_row() for prompt in prompts] == rows
    with pytest.raises(EvalError, match="kind is 5; it must be a text"):
        parse_row(cat | {"kind": 5})
    write_prompts(tmp_path, prompts)
    for index, color in enumerate(("red", "blue", "blue")):
        write_image(Image.new("RGB", (8, 8), color), tmp_path, index, 0)

    class RedIsACat:
        def detect(self, image: Image.Image) -> list[Found]:
            return [Found("cat")] if image.getpixel((0, 0)) == (255, 0, 0) else []

    pictures = Pictures(name="x", folder=tmp_path)
    assert geneval(pictures, RedIsACat()).details["kinds"] == {"known": 1.0, "new": 0.0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no prompts"),
        (["{nonsense"], "jsonl:1: not JSON"),
        (
            [ROWS[0], ROWS[0] | {"tag": "colours"}],
            "jsonl:2: unknown tag 'colours'; GenEval has single_object",
        ),
        ([{"tag": "colors"}], "lacks include, prompt"),
        ([ROWS[0] | {"include": []}], "include is empty"),
        ([ROWS[0] | {"include": [{"class": "cat", "count": 0}]}], r"include\[0\]: count is 0"),
        (
            [ROWS[0] | {"include": [{"class": "cat", "count": 1, "position": ["near", 0]}]}],
            "unknown relation",
        ),
        (
            [ROWS[0] | {"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}],
            "must come before",
        ),
    ],
)
def test_bad_metadata_is_named_with_its_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        read_metadata(metadata_file(tmp_path, rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three prompts with two images each."""
    prompts = [parse_row(row) for row in ROWS]
    write_prompts(tmp_path, prompts)
    for index in range(3):
        for sample in range(2):
            write_image(Image.new("RGB", (8, 8), "red"), tmp_path, index, sample)
    return tmp_path


class OneCat:
    def detect(self, image: Image.Image) -> list[Found]:
        return [Found("cat")]


def test_a_folder_is_scored_in_official_layout(folder: Path) -> None:
    assert (folder / "00001" / "samples" / "0001.png").is_file()
    scores = score_folder(folder, OneCat(), images_per_prompt=2)
    assert [s.correct for s in scores] == [True, True, False, False, False, False]
    assert summarise(scores).overall == pytest.approx(1 / 3)


def test_broken_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="2 images, 4 are wanted"):
        read_folder(folder, images_per_prompt=4)
    (folder / "00001" / "samples" / "0000.png").rename(folder / "00001" / "samples" / "0002.png")
    with pytest.raises(EvalError, match=r"image 0000\.png is missing"):
        read_folder(folder)
    (folder / "00002" / "samples" / "0001.png").write_bytes(b"not a picture")
    (folder / "00001" / "samples" / "0002.png").rename(folder / "00001" / "samples" / "0000.png")
    with pytest.raises(EvalError, match="not a readable image"):
        score_folder(folder, OneCat())
    (folder / "00000").rename(folder / "00007")
    with pytest.raises(EvalError, match="folder 00000 is missing"):
        read_folder(folder)
    with pytest.raises(EvalError, match="no numbered prompt folders"):
        read_folder(folder / "00001" / "samples")
    with pytest.raises(EvalError, match="no image folder"):
        read_folder(folder / "nowhere")


class Knows:
    """A detector with a vocabulary that finds what it is told to."""

    name = "three words"
    classes = ("cat", "dog", "potted plant")
    colors = ("red", "sky blue")

    def __init__(self, *found: Found) -> None:
        self.found = found

    def detect(self, image: Image.Image) -> list[Found]:
        return list(self.found)


@pytest.mark.parametrize(
    ("include", "message"),
    [
        (
            [{"class": "doog", "count": 1}],
            r"the class 'doog', which three words does not know; did you mean 'dog'",
        ),
        ([{"class": "Potted Plant", "count": 2}], "did you mean 'potted plant'"),
        ([{"class": "zeppelin", "count": 1}], "it knows cat, dog, potted plant"),
        (
            [{"class": "cat", "count": 1, "color": "skyblue"}],
            "the colour 'skyblue'.* did you mean 'sky blue'",
        ),
        ([{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "color": "rad"}], "did you mean 'red'"),
    ],
)
def test_words_that_the_detector_does_not_know_are_refused(
    include: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(EvalError, match=message):
        check_prompts([CAT_AND_DOG, ask("colors", include)], Knows())


def test_unknown_words_in_an_exclude_are_refused_and_the_classifiers_colours_count_first() -> None:
    prompt = ask("counting", [{"class": "cat", "count": 1}], [{"class": "cart", "count": 2}])
    with pytest.raises(EvalError, match="did you mean 'cat'"):
        check_prompts([prompt], Knows())
    mauve = ask("colors", [{"class": "cat", "count": 1, "color": "mauve"}])

    class Mauve:
        colors = ("mauve",)

    check_prompts([mauve], Knows(), Mauve())
    with pytest.raises(EvalError, match="'red', which Mauve does not know"):
        check_prompts([RED_CAT], Knows(), Mauve())
    check_prompts([mauve, ask("colors", [{"class": "anything", "count": 1}])])  # nothing says what is known


@pytest.mark.parametrize(
    ("include", "exclude", "fault"),
    [
        (
            [{"class": "cat", "count": 2}],
            [{"class": "cat", "count": 2}],
            "for 2 cat or more, exclude for fewer than 2",
        ),
        (
            [{"class": "dog", "count": 1}, {"class": "cat", "count": 3}],
            [{"class": "cat", "count": 1}],
            "fewer than 1",
        ),
        ([{"class": "cat", "count": 17}], [], "at most 16"),
        (
            [{"class": "cat", "count": 1, "color": "red"}, {"class": "cat", "count": 2, "color": "blue"}],
            [],
            "most confident cat would have to be red and blue",
        ),
        (
            [{"class": "cat", "count": 1}, {"class": "cat", "count": 1, "position": ["above", 0]}],
            [],
            "above itself",
        ),
        (
            [
                {"class": "cat", "count": 1},
                {"class": "dog", "count": 1, "position": ["left of", 0]},
                {"class": "dog", "count": 1, "position": ["right of", 0]},
            ],
            [],
            "right of the cat and left of it",
        ),
        (
            [
                {"class": "cat", "count": 1},
                {"class": "dog", "count": 1, "position": ["below", 0]},
                {"class": "cat", "count": 1, "position": ["below", 1]},
            ],
            [],
            "the cat would have to be below the dog and above it",
        ),
    ],
)
def test_clauses_that_no_image_can_meet_are_refused(
    include: list[dict[str, Any]], exclude: list[dict[str, Any]], fault: str
) -> None:
    with pytest.raises(EvalError, match=fault):
        check_prompts([ask("counting", include, exclude)])


def test_the_published_kinds_of_prompts_agree_with_themselves() -> None:
    both = [{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}]
    check_prompts([CAT_AND_DOG, THREE_CATS, RED_CAT, DOG_LEFT_OF_CAT, ask("color_attr", both)])


@pytest.mark.parametrize(
    "item", [{"class": "cat", "color": 5}, {"class": "cat", "color": ""}, {"class": " "}]
)
def test_words_that_are_no_words_are_refused(item: dict[str, Any]) -> None:
    with pytest.raises(EvalError, match=r"color is|is empty"):
        ask("colors", [item | {"count": 1}])


def test_a_detector_that_never_fires_is_said(tmp_path: Path) -> None:
    """Nothing found, and nothing found with enough confidence; one object anywhere is enough to be silent."""
    write_prompts(tmp_path, [CAT_AND_DOG, RED_CAT])
    for index in range(2):
        write_image(Image.new("RGB", (8, 8)), tmp_path, index, 0)
    for detector, silent in (
        (Knows(), False),
        (Knows(Found("dog", confidence=0.2)), False),
        (Knows(Found("dog")), True),
    ):
        summary = summarise(score_folder(tmp_path, detector))
        assert summary.overall == 0.0 and (not summary.warnings) is silent
        assert silent or "no object at all in 2 images" in summary.warnings[0]
    assert summarise([score("colors", 0, False)]).warnings == ()  # nobody counted


def test_a_folder_that_the_detector_cannot_judge_is_refused_before_its_first_image(tmp_path: Path) -> None:
    write_prompts(tmp_path, [CAT_AND_DOG, ask("colors", [{"class": "ship", "count": 1}])])
    for index in range(2):
        write_image(Image.new("RGB", (8, 8)), tmp_path, index, 0)
    seen: list[int] = []
    with pytest.raises(EvalError, match="'ship'"):
        score_folder(tmp_path, Knows(), on_image=lambda done, total: seen.append(done))
    assert not seen

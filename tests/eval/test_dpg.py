"""DPG-Bench by hand: cascading zeros, both ways to add up, and bad files."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_eval.dpg.benchmark import DpgPrompt, Question, ask, crops, read_dpg, score_image, summarise_dpg
from l2p_eval.errors import EvalError
from PIL import Image

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language"
)
ROWS = [
    "0,a red dog,k,1,0,entity,whole,entity - whole (dog),Is there a dog?",
    '0,a red dog,k,2,1,attribute,color,"attribute - color (dog, red)",Is the dog red?',
    "7,two cats by a tree,k,1,0,entity,whole,entity - whole (cats),Are there cats?",
    '7,two cats by a tree,k,2,1,other,count,"other - count (cats, 2)",Are there two cats?',
    "7,two cats by a tree,k,3,0,entity,whole,entity - whole (tree),Is there a tree?",
    '7,two cats by a tree,k,4,"1,3",relation,spatial,"relation - spatial (cats, tree, by)",By the tree?',
]


def csv_file(folder: Path, rows: list[str], header: str = HEADER) -> Path:
    path = folder / "dpg_bench.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> list[DpgPrompt]:
    return read_dpg(csv_file(tmp_path, ROWS))


def test_the_csv_is_read_with_its_dependencies(prompts: list[DpgPrompt]) -> None:
    assert [(p.item_id, len(p.questions)) for p in prompts] == [("0", 2), ("7", 4)]
    assert prompts[1].questions[3].parents == (1, 3)
    assert prompts[1].questions[0].parents == ()
    assert prompts[1].questions[3].category == "relation - spatial"


def test_a_no_takes_its_children_with_it(prompts: list[DpgPrompt]) -> None:
    cats = prompts[1]
    assert score_image(cats, {1: True, 2: True, 3: True, 4: True}) == 1.0
    assert score_image(cats, {1: True, 2: False, 3: True, 4: True}) == 0.75
    assert score_image(cats, {1: False, 2: True, 3: True, 4: True}) == 0.25  # 2 and 4 fall with 1
    assert score_image(cats, {1: True, 2: True, 3: False, 4: True}) == 0.5


def test_zeros_cascade_through_generations() -> None:
    chain = [
        Question(number=n, text=f"{n}?", category="entity", parents=(n - 1,) if n > 1 else ())
        for n in (1, 2, 3)
    ]
    answers = {1: False, 2: True, 3: True}
    prompt = DpgPrompt(item_id="x", text="t", questions=tuple(chain))
    assert score_image(prompt, answers, "official_compat") == score_image(prompt, answers, "fixed") == 0.0
    backwards = DpgPrompt(item_id="x", text="t", questions=tuple(reversed(chain)))
    assert score_image(backwards, answers, "fixed") == 0.0
    assert score_image(backwards, answers, "official_compat") == pytest.approx(
        1 / 3
    )  # 3 was settled before 2 fell


def test_both_ways_to_add_up(prompts: list[DpgPrompt]) -> None:
    """`official_compat` never sees the dog: the second row depends on the dropped first one."""
    answers = {
        "0": [{1: False, 2: True}],  # 0 of 2
        "7": [{1: True, 2: True, 3: True, 4: True}, {1: False, 2: True, 3: True, 4: False}],  # 1.0 and 0.25
    }
    fixed, official = (summarise_dpg(prompts, answers, mode) for mode in ("fixed", "official_compat"))
    assert fixed.average == pytest.approx(100 * (0 + 0.625) / 2)
    assert official.average == pytest.approx(62.5)
    assert (fixed.prompt_count, fixed.image_count) == (2, 3)
    assert (official.prompt_count, official.image_count) == (1, 2)
    # as answered, before zeros cascade: entity no | yes yes no yes
    assert fixed.broad["entity"] == pytest.approx(60.0)
    assert official.broad["entity"] == pytest.approx(50.0)  # the last image only
    assert fixed.broad["other"] == official.broad["other"] == 100.0
    assert fixed.detailed["attribute - color"] == 100.0


def test_a_first_row_without_children_is_only_dropped(tmp_path: Path) -> None:
    rows = [ROWS[4].replace("7,", "0,", 1).replace(",3,0,", ",1,0,"), *ROWS[2:]]
    rows.insert(1, rows[0].replace(",1,0,", ",2,0,"))
    prompts = read_dpg(csv_file(tmp_path, rows))
    answers = {"0": [{1: False, 2: True}]}
    assert summarise_dpg(prompts, answers, "official_compat").average == 100.0
    assert summarise_dpg(prompts, answers, "fixed").average == 50.0


def test_a_grid_is_cut_and_the_judge_asked_everything(prompts: list[DpgPrompt]) -> None:
    grid = Image.new("RGB", (16, 16), "black")
    grid.paste("white", (8, 0, 16, 8))

    class Bright:
        def answer(self, image: Image.Image, question: str) -> bool:
            return image.getpixel((0, 0)) == (255, 255, 255)

    answers = ask(Bright(), prompts[0], crops(grid, 8))
    assert answers == [{1: value, 2: value} for value in (False, True, False, False)]
    assert len(crops(grid, 8, count=2)) == 2
    with pytest.raises(EvalError, match="need"):
        crops(grid, 12)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], HEADER, "has no questions"),
        (ROWS, HEADER.replace("dependency", "depends"), "lacks the columns dependency"),
        ([*ROWS[:5], ROWS[5][:40]], HEADER, r"csv:7: the row is incomplete"),
        ([ROWS[0], ROWS[3]], HEADER, "depends on 1, which is not there"),
        ([ROWS[0].replace(",1,0,", ",one,0,")], HEADER, "must be numbers"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, rows: list[str], header: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        read_dpg(csv_file(tmp_path, rows, header))


def test_missing_answers_and_images_are_errors(prompts: list[DpgPrompt]) -> None:
    with pytest.raises(EvalError, match="no answer to question 2"):
        score_image(prompts[0], {1: True})
    with pytest.raises(EvalError, match="no answers to score"):
        summarise_dpg(prompts, {}, "fixed")


def published(
    prompts: list[DpgPrompt], answers: dict[str, list[dict[int, bool]]]
) -> tuple[float, int] | None:
    """The published loop, written down from its source: (score, prompts scored), None where none is."""
    table: dict[str, dict[int, tuple[int, ...]]] = {}
    rows = [(prompt.item_id, question) for prompt in prompts for question in prompt.questions]
    for item, question in rows[1:]:
        table.setdefault(item, {})[question.number] = question.parents or (0,)
    means = []
    for item, images in answers.items():
        if item not in table:
            continue
        try:
            scores = []
            for image in images:
                value = {number: float(image[number]) for number in table[item]}
                for number, parents in table[item].items():
                    for parent in parents:
                        if parent and value[parent] == 0:
                            value[number] = 0.0
                            break
                scores.append(sum(value.values()) / len(value))
        except KeyError:
            continue
        means.append(sum(scores) / len(scores))
    return (100 * sum(means) / len(means), len(means)) if means else None


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_official_compat_is_the_published_loop(data: st.DataObject) -> None:
    """Dependencies in any order and on the lost first row, several images; the prompts left out, too."""
    prompts, answers = [], {}
    for item in range(data.draw(st.integers(1, 3))):
        numbers = list(range(1, data.draw(st.integers(1, 5)) + 1))
        questions = [
            Question(
                number=number,
                text="?",
                category="entity",
                parents=tuple(data.draw(st.lists(st.sampled_from(numbers), max_size=3, unique=True))),
            )
            for number in numbers
        ]
        prompts.append(DpgPrompt(item_id=f"item{item}", text="t", questions=tuple(questions)))
        answers[f"item{item}"] = [
            {number: data.draw(st.booleans()) for number in numbers}
            for _ in range(data.draw(st.integers(1, 3)))
        ]
    expected = published(prompts, answers)
    if expected is None:
        with pytest.raises(EvalError, match="no answers to score"):
            summarise_dpg(prompts, answers, "official_compat")
    else:
        found = summarise_dpg(prompts, answers, "official_compat")
        assert (pytest.approx(found.average), found.prompt_count) == expected


def test_a_lost_row_that_is_only_a_later_parent_is_never_read() -> None:
    """Question 3 asks for 2 before the lost 1: a "no" to 2 settles it, a "yes" stops the script."""
    questions = [
        Question(number=n, text="?", category="entity", parents=p) for n, p in ((1, ()), (2, ()), (3, (2, 1)))
    ]
    prompts = [
        DpgPrompt(item_id="first", text="t", questions=tuple(questions)),
        DpgPrompt(item_id="other", text="t", questions=(Question(number=1, text="?", category="entity"),)),
    ]
    other = {"other": [{1: True}]}
    scored = summarise_dpg(prompts, {"first": [{1: True, 2: False, 3: True}], **other})
    assert (scored.average, scored.prompt_count) == (50.0, 2)
    left_out = summarise_dpg(prompts, {"first": [{1: True, 2: True, 3: True}], **other})
    assert (left_out.average, left_out.prompt_count, left_out.image_count) == (100.0, 1, 1)


@pytest.mark.parametrize(
    ("order", "message"),
    [((0, 2, 3, 1, 4, 5), "0 has rows in two places"), ((2, 3, 0, 1, 4, 5), "7 has rows in two places")],
)
def test_a_shuffled_file_is_refused(tmp_path: Path, order: tuple[int, ...], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        read_dpg(csv_file(tmp_path, [ROWS[index] for index in order]))


def test_two_texts_for_one_item_are_refused(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[1].replace("a red dog", "a blue dog")]
    with pytest.raises(EvalError, match="csv:3: 0 has two texts"):
        read_dpg(csv_file(tmp_path, rows))

"""DPG-Bench by hand: cascading zeros, both ways to add up, and bad files."""

from pathlib import Path

import pytest
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
    assert prompts[1].questions[3].broad_category == "relation"


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

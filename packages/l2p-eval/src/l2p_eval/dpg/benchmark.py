"""DPG-Bench: yes/no questions about dense prompts, with dependencies (Hu et al. 2024; Table 1 of the paper).

A question about the colour of a dog counts only if there is a dog: a question whose parent is answered "no"
scores 0, and zeros cascade. An image scores the mean over its questions, a prompt the mean over its images,
the benchmark the mean over prompts times 100. Category scores are means over the answers as given, before
zeros cascade.

Two ways to add up. `official_compat` repeats the published script, so that numbers compare with published
ones: it drops the CSV's first row, takes the category scores from a prompt's last image only, and lets a zero
pass only to questions listed later. A question that depends on the lost row stops that script, and then it
leaves the first prompt out; but it reads a question's parents only up to the first that is answered "no".
`fixed` does what was meant.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from l2p_run import places
from l2p_run.errors import raised_as
from PIL import Image

from l2p_eval.errors import EvalError

Mode = Literal["official_compat", "fixed"]
Answers = Mapping[int, bool]
"""Question number -> whether the judge said yes."""

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


class Judge(Protocol):
    """Answers a question about an image with yes (True) or no."""

    def answer(self, image: Image.Image, question: str) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of the CSV. `parents`: numbers of the questions that must be answered yes; () for a root."""

    number: int
    text: str
    category: str  # "entity - whole"; the broad category stands before the hyphen
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DpgPrompt:
    """A prompt and its questions, in the order of the CSV."""

    item_id: str
    text: str
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True)
class DpgScores:
    """Scores in [0, 100]."""

    mode: Mode
    average: float
    broad: Mapping[str, float]  # per broad category: entity, attribute, relation, global, other
    detailed: Mapping[str, float]
    prompt_count: int
    image_count: int


# --------------------------------------------------------------------------------------------------- CSV


def read_dpg(path: Path) -> list[DpgPrompt]:
    """Read `dpg_bench.csv`.

    Raises:
        EvalError: missing file or columns, a truncated row, a parent that does not exist, rows of one item in
            two places or with two texts; names the line.
    """
    groups: dict[str, tuple[str, list[Question]]] = {}
    previous = ""
    for where, row in _rows(path):
        item = row["item_id"]
        text, questions = groups.setdefault(item, (row["text"], []))
        if questions and (previous != item or text.split() != row["text"].split()):
            fault = "has rows in two places" if previous != item else "has two texts"
            raise EvalError(
                f"{where}: {item} {fault} (a shuffled or mixed file?); the published script would score"
                " another benchmark: fetch dpg_bench.csv again, or sort it by item_id"
            )
        previous = item
        question = _question(row, where)
        if any(question.number == other.number for other in questions):
            raise EvalError(
                f"{where}: {row['item_id']} has two questions {question.number}; number them apart"
            )
        questions.append(question)
    if not groups:
        raise EvalError(f"{path} has no questions")
    prompts = [DpgPrompt(item_id=key, text=text, questions=tuple(q)) for key, (text, q) in groups.items()]
    for prompt in prompts:
        _check_parents(prompt, path)
    return prompts


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return ("FILE:LINE", row) of every row, all of whose columns are filled."""
    with raised_as(EvalError):
        if not places.is_file(path):
            raise EvalError(f"no DPG-Bench file {path}; give dpg_bench.csv")
        content = places.read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise EvalError(f"{path} lacks the columns {', '.join(missing)}; is it dpg_bench.csv?")
        rows = [(f"{path}:{reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise EvalError(f"{path} is no CSV in UTF-8 ({error}); fetch dpg_bench.csv again") from None
    cut = not text.endswith(("\n", "\r", "?", '?"', "."))  # in the last column, where nothing is missing
    for number, (where, row) in enumerate(rows, start=1):
        empty = any(row[name] is None or not row[name].strip() for name in COLUMNS)
        if empty or (cut and number == len(rows)):
            raise EvalError(f"{where}: the row is incomplete (a truncated file?); fetch dpg_bench.csv again")
    return rows


def _question(row: Mapping[str, str], where: str) -> Question:
    try:
        parents = [int(part) for part in row["dependency"].split(",")]
        number = int(row["proposition_id"])
    except ValueError:
        raise EvalError(
            f"{where}: proposition_id {row['proposition_id']!r} and dependency {row['dependency']!r}"
            " must be numbers"
        ) from None
    return Question(
        number=number,
        text=row["question_natural_language"],
        category=row["tuple"].split("(")[0].strip(),
        parents=tuple(parent for parent in parents if parent),
    )


def _check_parents(prompt: DpgPrompt, path: Path) -> None:
    numbers = {question.number for question in prompt.questions}
    for question in prompt.questions:
        unknown = set(question.parents) - numbers
        if unknown:
            raise EvalError(
                f"{path}: question {question.number} of {prompt.item_id} depends on {min(unknown)},"
                " which is not there"
            )


# ------------------------------------------------------------------------------------------------ images


def crops(image: Image.Image, resolution: int, count: int = 4) -> list[Image.Image]:
    """Return the first `count` images of an official 2 x 2 grid (left to right, then down).

    Raises:
        EvalError: it is no grid of such images.
    """
    if not 1 <= count <= 4:
        raise EvalError(f"a grid holds 1 to 4 images, {count} are wanted")
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)][:count]
    wanted = (resolution * (1 + max(x for x, _ in corners)), resolution * (1 + max(y for _, y in corners)))
    if image.size not in (wanted, (2 * resolution, 2 * resolution)):
        raise EvalError(f"the grid is {image.size}, {count} images of {resolution} px need {wanted}")
    return [
        image.crop((x * resolution, y * resolution, (x + 1) * resolution, (y + 1) * resolution))
        for x, y in corners
    ]


def ask(
    judge: Judge,
    prompt: DpgPrompt,
    images: Sequence[Image.Image],
    on_answer: Callable[[], None] | None = None,
) -> list[dict[int, bool]]:
    """Return all questions of a prompt for each of its images."""
    answers: list[dict[int, bool]] = []
    for image in images:
        answers.append({})
        for question in prompt.questions:
            answers[-1][question.number] = judge.answer(image, question.text)
            if on_answer:
                on_answer()
    return answers


# ------------------------------------------------------------------------------------------------ scores


def score_image(prompt: DpgPrompt, answers: Answers, mode: Mode = "official_compat") -> float:
    """Return the share of a prompt's questions that count as yes once zeros have cascaded, in [0, 1]."""
    lacking = [question.number for question in prompt.questions if question.number not in answers]
    if lacking:
        raise EvalError(f"{prompt.item_id} has no answer to question {lacking[0]}; ask the judge again")
    holds = {question.number: bool(answers[question.number]) for question in prompt.questions}
    rounds = 1 if mode == "official_compat" else len(prompt.questions)
    for _ in range(rounds):
        before = dict(holds)
        for question in prompt.questions:
            # In order and up to the first "no": whether the lost row is read hangs on that.
            if not all(_holds(holds, parent) for parent in question.parents):
                holds[question.number] = False
        if holds == before:
            break
    return sum(holds.values()) / len(holds)


class _LostRow(KeyError):
    """A question's parent is the row that the published script does not read."""


def _holds(holds: Mapping[int, bool], parent: int) -> bool:
    if parent not in holds:
        raise _LostRow(parent)
    return holds[parent]


def summarise_dpg(
    prompts: Sequence[DpgPrompt], answers: Mapping[str, Sequence[Answers]], mode: Mode = "official_compat"
) -> DpgScores:
    """DPG-Bench's scores.

    Args:
        prompts: as `read_dpg` returns them.
        answers: item_id -> answers for each of its images; prompts without an entry are left out.
    """
    means: list[float] = []
    by_category: dict[str, list[bool]] = {}
    image_count = 0
    for prompt in _without_first_row(prompts) if mode == "official_compat" else prompts:
        if prompt.item_id not in answers:
            continue
        images = answers[prompt.item_id]
        if not images:
            raise EvalError(f"{prompt.item_id} has no images; it needs at least one")
        try:
            scores = [score_image(prompt, image, mode) for image in images]
        except _LostRow:  # the published script goes on without the prompt
            continue
        means.append(sum(scores) / len(images))
        image_count += len(images)
        for image in images[-1:] if mode == "official_compat" else images:
            for question in prompt.questions:
                by_category.setdefault(question.category, []).append(bool(image[question.number]))
    if not means:
        raise EvalError("no answers to score; DPG-Bench needs at least one image")
    by_broad: dict[str, list[bool]] = {}
    for category, values in by_category.items():
        by_broad.setdefault(category.split("-")[0].strip(), []).extend(values)
    return DpgScores(
        mode=mode,
        average=100 * sum(means) / len(means),
        broad=_percentages(by_broad),
        detailed=_percentages(by_category),
        prompt_count=len(means),
        image_count=image_count,
    )


def _without_first_row(prompts: Sequence[DpgPrompt]) -> list[DpgPrompt]:
    """Return what the published script sees of the CSV."""
    if not prompts:
        return []
    first, *rest = prompts
    _, *questions = first.questions
    return [replace(first, questions=tuple(questions)), *rest] if questions else rest


def _percentages(values: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    return {name: 100 * sum(values[name]) / len(values[name]) for name in sorted(values)}

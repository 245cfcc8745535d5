"""GenEval: does the picture show the objects, counts, colours and positions that its prompt asks for?

The rules are those of the official evaluator (Ghosh et al. 2023; sec. 4.1 and Table 1 of the paper). Finding
objects is left to a `Detector`, naming their colour to a `ColorClassifier` when the detector does not name
it, so that the same rules judge COCO photographs and rendered scenes alike.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from l2p_eval.errors import EvalError

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six tasks, in the official order."""

RELATIONS = ("left of", "right of", "above", "below")


class Detection(Protocol):
    """One object found in an image; `box` is (x0, y0, x1, y1) in pixels, `confidence` in [0, 1]."""

    @property
    def label(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def box(self) -> tuple[float, float, float, float]: ...
    @property
    def color(self) -> str | None: ...


class Detector(Protocol):
    """Finds objects in an image."""

    def detect(self, image: Image.Image) -> Sequence[Detection]: ...


class ColorClassifier(Protocol):
    """Names the colour of one detected object; asked only where a prompt asks for a colour."""

    def classify(self, image: Image.Image, detection: Detection) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The official evaluator's constants."""

    confidence: float = 0.3  # a detection counts above this ...
    counting_confidence: float = 0.9  # ... and above this where objects are counted
    max_objects: int = 16  # per class, the most confident ones
    position: float = 0.1  # dead zone of a relation, as a fraction of both objects' sizes
    direction: float = 0.5  # cosine beyond which a relation holds; two can hold at once


OFFICIAL = Thresholds()


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """At least (`include`) or fewer than (`exclude`) `count` objects of `label`."""

    label: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None  # (relation, index of an earlier include)


@dataclass(frozen=True, kw_only=True)
class GenEvalPrompt:
    """One row of `evaluation_metadata.jsonl`."""

    tag: str
    prompt: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """The official JSON object of this prompt."""
        row: dict[str, Any] = {"tag": self.tag, "include": [_requirement_row(r) for r in self.include]}
        if self.exclude:
            row["exclude"] = [_requirement_row(r) for r in self.exclude]
        return row | {"prompt": self.prompt}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an image shows what its prompt asks for and, if not, why not (one reason a line)."""

    correct: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """The verdict on one image of a folder."""

    prompt_index: int
    sample: int
    tag: str
    prompt: str
    correct: bool
    reason: str
    path: str


@dataclass(frozen=True, kw_only=True)
class GenEvalScores:
    """Accuracies in [0, 1]. `overall` is the unweighted mean of `tags`, as officially reported."""

    overall: float
    tags: Mapping[str, float]
    images: float  # share of images that are right
    prompts: float  # share of prompts with at least one right image
    image_count: int
    prompt_count: int
    tag_counts: Mapping[str, int]  # images per tag

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


# ---------------------------------------------------------------------------------------------- metadata


def read_metadata(path: Path) -> list[GenEvalPrompt]:
    """Reads `evaluation_metadata.jsonl`, one prompt a line.

    Raises:
        EvalError: the file is missing, empty or not JSON lines, or a row breaks the schema; names the line.
    """
    if not path.is_file():
        raise EvalError(
            f"no metadata file {path}; give GenEval's evaluation_metadata.jsonl or one in its format"
        )
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            prompts.append(parse_row(_json(line, f"{path}:{number}"), f"{path}:{number}"))
    if not prompts:
        raise EvalError(f"{path} has no prompts; it needs one JSON object a line")
    return prompts


def parse_row(row: Any, where: str = "metadata") -> GenEvalPrompt:
    """Checks one metadata object and types it. `where` begins every error."""
    if not isinstance(row, Mapping):
        raise EvalError(f"{where}: a metadata row is a JSON object, this is {type(row).__name__}")
    missing = [key for key in ("tag", "include", "prompt") if key not in row]
    if missing:
        raise EvalError(f"{where}: the row lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
    if row["tag"] not in TAGS:
        raise EvalError(f"{where}: unknown tag {row['tag']!r}; GenEval has {', '.join(TAGS)}")
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        raise EvalError(f"{where}: the prompt is empty")
    include = _requirements(row["include"], f"{where}: include")
    if not include:
        raise EvalError(f"{where}: include is empty, so that every image would be right")
    exclude = _requirements(row.get("exclude", []), f"{where}: exclude")
    return GenEvalPrompt(tag=row["tag"], prompt=row["prompt"], include=include, exclude=exclude)


def _requirements(items: Any, where: str) -> tuple[Requirement, ...]:
    if not isinstance(items, list):
        raise EvalError(f"{where} is a list of objects, this is {type(items).__name__}")
    return tuple(_requirement(item, i, f"{where}[{i}]") for i, item in enumerate(items))


def _requirement(item: Any, index: int, where: str) -> Requirement:
    """Types one clause; a position may only point at a clause before `index`."""
    if not isinstance(item, Mapping) or not isinstance(item.get("class"), str):
        raise EvalError(f'{where} needs a "class", for example {{"class": "cat", "count": 1}}')
    count = item.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise EvalError(f"{where}: count is {count!r}; it must be a whole number from 1")
    position = item.get("position")
    if position is None:
        return Requirement(label=item["class"], count=count, color=item.get("color"))
    relation, target = position if isinstance(position, list) and len(position) == 2 else (position, None)
    if relation not in RELATIONS:
        raise EvalError(f"{where}: unknown relation {relation!r}; GenEval has {', '.join(RELATIONS)}")
    if not isinstance(target, int) or not 0 <= target < index:
        raise EvalError(
            f"{where}: position points at include {target!r}; the target must come before {index}"
        )
    return Requirement(label=item["class"], count=count, color=item.get("color"), position=(relation, target))


def _requirement_row(requirement: Requirement) -> dict[str, Any]:
    row: dict[str, Any] = {"class": requirement.label, "count": requirement.count}
    if requirement.color is not None:
        row["color"] = requirement.color
    if requirement.position is not None:
        row["position"] = list(requirement.position)
    return row


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise EvalError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None


# ------------------------------------------------------------------------------------------------- rules


def judge(
    prompt: GenEvalPrompt,
    detections: Sequence[Detection],
    *,
    image: Image.Image | None = None,
    colors: ColorClassifier | None = None,
    thresholds: Thresholds = OFFICIAL,
) -> Verdict:
    """Applies the official rules to the objects detected in one image.

    Each include must be met by the `count` most confident objects of its class (AND); an exclude fails as
    soon as `count` objects of its class are there. An include that fails cannot be the target of a position.

    Args:
        image: handed to `colors`; not needed when the detector names colours itself.
        colors: asked for the colour of detections whose `color` is None.
    """
    found = _confident(detections, prompt.tag, thresholds)
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for requirement in prompt.include:
        objects = found.get(requirement.label, [])[: requirement.count]
        reason = _missing(requirement, objects, groups, image, colors, thresholds)
        if reason:
            reasons.append(reason)
        groups.append(None if reason else objects)
    for requirement in prompt.exclude:
        present = len(found.get(requirement.label, []))
        if present >= requirement.count:
            reasons.append(f"expected fewer than {requirement.count} {requirement.label}, found {present}")
    return Verdict(correct=not reasons, reason="\n".join(reasons))


def relations(a: Detection, b: Detection, thresholds: Thresholds = OFFICIAL) -> set[str]:
    """How `a` lies relative to `b`: none, one or two of `RELATIONS`.

    The offset of the centres is shrunk by a tenth of both sizes along each axis and divided by its original
    length; an axis counts when more than half remains.
    """
    offset = [(a.box[i] + a.box[i + 2] - b.box[i] - b.box[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(a.box[i + 2] - a.box[i]) + abs(b.box[i + 2] - b.box[i]) for i in (0, 1)]
    margins = [max(abs(o) - thresholds.position * s, 0.0) for o, s in zip(offset, sizes, strict=True)]
    shrunk = [math.copysign(margin, o) for margin, o in zip(margins, offset, strict=True)]
    if all(abs(value) < 1e-3 for value in shrunk):
        return set()
    dx, dy = (value / math.hypot(*offset) for value in shrunk)
    holds = {
        "left of": dx < -thresholds.direction,
        "right of": dx > thresholds.direction,
        "above": dy < -thresholds.direction,
        "below": dy > thresholds.direction,
    }
    return {relation for relation, true in holds.items() if true}


def _confident(
    detections: Iterable[Detection], tag: str, thresholds: Thresholds
) -> dict[str, list[Detection]]:
    """The detections that count, by class, most confident first."""
    threshold = thresholds.counting_confidence if tag == "counting" else thresholds.confidence
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.confidence):
        objects = found.setdefault(detection.label, [])
        if detection.confidence > threshold and len(objects) < thresholds.max_objects:
            objects.append(detection)
    return found


def _missing(
    requirement: Requirement,
    objects: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    image: Image.Image | None,
    colors: ColorClassifier | None,
    thresholds: Thresholds,
) -> str:
    """Why `objects` do not meet an include, or "" when they do."""
    label = requirement.label
    if len(objects) < requirement.count:
        return f"expected {requirement.count} {label}, found {len(objects)}"
    if requirement.color is not None:
        seen = [_color(detection, image, colors) for detection in objects]
        if seen.count(requirement.color) < requirement.count:
            return f"expected {requirement.count} {requirement.color} {label}, found {', '.join(seen)}"
    if requirement.position is not None:
        relation, target = requirement.position
        targets = groups[target]
        if targets is None:
            return f"nothing there for the {label} to be {relation}"
        for detection in objects:
            for other in targets:
                actual = relations(detection, other, thresholds)
                if relation not in actual:
                    seen_as = " and ".join(sorted(actual)) or "neither side"
                    return f"expected {label} {relation} {other.label}, found {seen_as}"
    return ""


def _color(detection: Detection, image: Image.Image | None, colors: ColorClassifier | None) -> str:
    if detection.color is not None:
        return detection.color
    if colors is None or image is None:
        raise EvalError(
            f"the detector names no colour for a {detection.label} and the prompt asks for one;"
            " give a colour classifier"
        )
    return colors.classify(image, detection)


# ----------------------------------------------------------------------------------------------- summary


def summarise(scores: Sequence[ImageScore]) -> GenEvalScores:
    """Official summary: accuracy per tag, their unweighted mean, % of images and % of prompts."""
    if not scores:
        raise EvalError("no images were scored; a GenEval score needs at least one")
    by_tag: dict[str, list[bool]] = {}
    by_prompt: dict[int, bool] = {}
    for score in scores:
        by_tag.setdefault(score.tag, []).append(score.correct)
        by_prompt[score.prompt_index] = by_prompt.get(score.prompt_index, False) or score.correct
    tags = {tag: sum(by_tag[tag]) / len(by_tag[tag]) for tag in TAGS if tag in by_tag}
    return GenEvalScores(
        overall=sum(tags.values()) / len(tags),
        tags=tags,
        images=sum(score.correct for score in scores) / len(scores),
        prompts=sum(by_prompt.values()) / len(by_prompt),
        image_count=len(scores),
        prompt_count=len(by_prompt),
        tag_counts={tag: len(by_tag[tag]) for tag in tags},
    )

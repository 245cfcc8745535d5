"""GenEval's verdict on one image: the official rules over what a detector found in it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from l2p_run.errors import raised_as
from l2p_run.settings import check_settings, setting
from PIL import Image

from l2p_eval.errors import EvalError
from l2p_eval.geneval.metadata import GenEvalPrompt, Requirement


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

    confidence: float = setting(0.3, ge=0, le=1)  # a detection counts above this ...
    counting_confidence: float = setting(0.9, ge=0, le=1)  # ... and above this where objects are counted
    max_objects: int = setting(16, ge=1)  # per class, the most confident ones
    position: float = setting(0.1, ge=0)  # dead zone of a relation, as a fraction of both objects' sizes
    direction: float = setting(0.5, ge=-1, le=1)  # cosine beyond which a relation holds; two can hold at once

    def __post_init__(self) -> None:
        """Raise `EvalError` for numbers that are none, or out of range."""
        raised_as(EvalError)(check_settings)(self)


OFFICIAL = Thresholds()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an image shows what its prompt asks for and, if not, why not (one reason a line)."""

    correct: bool
    reason: str = ""
    objects: int = 0  # of any class that were found with enough confidence


def judge(
    prompt: GenEvalPrompt,
    detections: Sequence[Detection],
    *,
    image: Image.Image | None = None,
    colors: ColorClassifier | None = None,
    thresholds: Thresholds = OFFICIAL,
) -> Verdict:
    """Apply the official rules to the objects detected in one image.

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
    total = sum(len(group) for group in found.values())
    return Verdict(correct=not reasons, reason="\n".join(reasons), objects=total)


def relations(a: Detection, b: Detection, thresholds: Thresholds = OFFICIAL) -> set[str]:
    """Return how `a` lies relative to `b`: none, one or two of `RELATIONS`.

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
    """Return the detections that count, by class, most confident first.

    The official evaluator holds confidences in float32 and takes `argsort()[::-1]`: a score that float32
    cannot tell from the threshold is not above it, and of equal ones the last comes first.

    Raises:
        EvalError: a confidence or box is NaN or infinite.
    """
    threshold = np.float32(thresholds.counting_confidence if tag == "counting" else thresholds.confidence)
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: np.float32(_finite(d).confidence))[::-1]:
        objects = found.setdefault(detection.label, [])
        if np.float32(detection.confidence) > threshold and len(objects) < thresholds.max_objects:
            objects.append(detection)
    return found


def _finite(detection: Detection) -> Detection:
    if not all(map(math.isfinite, (detection.confidence, *detection.box))):
        raise EvalError(
            f"the detector gives a {detection.label} the confidence {detection.confidence} and the box"
            f" {detection.box}; look for broken weights, or try --dtype float32"
        )
    return detection


def _missing(
    requirement: Requirement,
    objects: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    image: Image.Image | None,
    colors: ColorClassifier | None,
    thresholds: Thresholds,
) -> str:
    """Return why `objects` do not meet an include, or "" when they do."""
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

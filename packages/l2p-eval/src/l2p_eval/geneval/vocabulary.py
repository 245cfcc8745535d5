"""Can these prompts be judged here? Classes and colours that the detector knows, and clauses that agree.

A prompt that asks for what the detector has no word for, or for what no picture can show, would score 0 on
every image without a word.
"""

import difflib
from collections.abc import Collection, Sequence
from typing import Any

from l2p_eval.errors import EvalError
from l2p_eval.geneval.metadata import GenEvalPrompt
from l2p_eval.geneval.rules import OFFICIAL

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def check_prompts(prompts: Sequence[GenEvalPrompt], detector: Any = None, colors: Any = None) -> None:
    """Raise for the first prompt that no image could meet.

    Args:
        detector, colors: their attributes `classes` and `colors` name what they can answer; a detector or
            classifier without them is believed to know everything. `colors` counts before `detector`.

    Raises:
        EvalError: it asks for an unknown class or colour, and names the nearest known one; or its clauses
            contradict each other.
    """
    classes = getattr(detector, "classes", None)
    names = getattr(colors, "colors", None) or getattr(detector, "colors", None)
    for prompt in prompts:
        for requirement in (*prompt.include, *prompt.exclude):
            where = f"the prompt {prompt.prompt!r} asks for"
            if classes is not None:
                _check_word(where, "class", requirement.label, classes, detector)
            if names is not None and requirement.color is not None:
                _check_word(where, "colour", requirement.color, names, colors or detector)
        if fault := contradiction(prompt):
            raise EvalError(
                f"no image can meet the prompt {prompt.prompt!r}: {fault}; correct its metadata row"
            )


def _check_word(where: str, kind: str, word: str, known: Collection[str], judge: Any) -> None:
    if word in known:
        return
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    remedy = (
        f"did you mean {near[0]!r}?"
        if near
        else f"it knows {', '.join(sorted(known)[:12])}"
        + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    )
    name = getattr(judge, "name", type(judge).__name__)
    raise EvalError(f"{where} the {kind} {word!r}, which {name} does not know; {remedy}")


def contradiction(prompt: GenEvalPrompt) -> str:
    """Return why the clauses of a prompt cannot hold together under GenEval's rules, or "" if they can.

    An include is judged on the most confident objects of its class alone: two includes of one class speak of
    the same objects.
    """
    most = OFFICIAL.max_objects
    colors: dict[str, str] = {}
    places: set[tuple[str, str, str]] = set()  # (class, relation, class)
    for one in prompt.include:
        label = one.label
        if one.count > most:
            return f"at most {most} objects of a class count, and it asks for {one.count} {label}"
        for other in prompt.exclude:
            if other.label == label and other.count <= one.count:
                return f"include asks for {one.count} {label} or more, exclude for fewer than {other.count}"
        if one.color and colors.setdefault(label, one.color) != one.color:
            return f"the most confident {label} would have to be {colors[label]} and {one.color}"
        if one.position:
            relation, target = one.position[0], prompt.include[one.position[1]].label
            if target == label:
                return f"the {label} would have to be {relation} itself"
            if {(label, _OPPOSITE[relation], target), (target, relation, label)} & places:
                return f"the {label} would have to be {relation} the {target} and {_OPPOSITE[relation]} it"
            places.add((label, relation, target))
    return ""

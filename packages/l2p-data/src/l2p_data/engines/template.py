"""What an LLM is told to do: our own wording of the rules of Fig. 10 (generation) and Fig. 11 (audit).

The figures themselves are not reproduced; the rules are: fluent sentences instead of tag lists, text to be
rendered in escaped double quotes, demands of single sub-classes, a simple and a detailed kind, a diversity
checklist, JSON out. `TEMPLATE_VERSION` enters `created_by`, because a prompt is a product of the template as
much as of the model.
"""

import json
import random
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from l2p_data.engines.llm import Category, PromptRequest

TEMPLATE_VERSION = "1"

#: JSON schema of an answer. Without length bounds: some decoders then forbid escaped quotes; the filter
#: checks length.
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}},
    "required": ["prompt"],
    "additionalProperties": False,
}

VERDICT_SCHEMA = {
    "type": "object",
    "properties": {"is_valid": {"type": "boolean"}, "reason": {"type": "string"}},
    "required": ["is_valid", "reason"],
    "additionalProperties": False,
}


def generation_message(request: PromptRequest) -> str:
    """Return the user message that asks for one prompt. Its hints are drawn with the request's seed."""
    hints = _hints()
    category = request.category
    language = category.language if category.language in hints["languages"] else "en"
    place = " > ".join(part for part in (category.superclass, category.subclass, category.group) if part)
    return _text("generation.txt").format(
        language=hints["languages"][language],
        category=category.category,
        place=place,
        kind=hints["kinds"][request.kind].format(**hints["lengths"][language]),
        demand=hints["demands"].get(category.subclass, "Show it so that it is recognised at once."),
        **_drawn(request.seed),
    )


def generation_list_schema(count: int) -> dict[str, Any]:
    """Return JSON schema of the answer to `generation_list_message`: as many prompts as subjects, in their
    order.
    """
    prompts = {"type": "array", "items": {"type": "string"}, "minItems": count, "maxItems": count}
    return {
        "type": "object",
        "properties": {"prompts": prompts},
        "required": ["prompts"],
        "additionalProperties": False,
    }


def generation_list_message(requests: Sequence[PromptRequest]) -> str:
    """Return the user message that asks for one prompt for each of several subjects of one sub-class (Fig.
    10).

    Each subject has hints of its own, drawn with its request's seed.
    """
    first, hints = requests[0], _hints()
    category = first.category
    language = category.language if category.language in hints["languages"] else "en"
    subjects = [
        f"{number}. {request.category.category}"
        + (f" ({request.category.group})" if request.category.group else "")
        + ". Viewpoint: {viewpoint}; light: {light}; style: {style}; starts with {opening}.".format(
            **_drawn(request.seed)
        )
        for number, request in enumerate(requests, start=1)
    ]
    return _text("generation_list.txt").format(
        language=hints["languages"][language],
        place=f"{category.superclass} > {category.subclass}",
        subjects="\n".join(subjects),
        count=len(requests),
        kind=hints["kinds"][first.kind].format(**hints["lengths"][language]),
        demand=hints["demands"].get(category.subclass, "Show it so that it is recognised at once."),
    )


def audit_message(prompt: str, superclass: str, subclass: str, category: str) -> str:
    """Return the user message that asks for a verdict on one prompt. The prompt is passed as a JSON string,
    so it cannot pose as a part of the instructions."""
    place = " > ".join(part for part in (superclass, subclass, category) if part) or "unknown"
    return _text("audit.txt").format(place=place, prompt=json.dumps(prompt, ensure_ascii=False))


EXPANSION_SCHEMA = {
    "type": "object",
    "properties": {"categories": {"type": "array", "items": {"type": "string"}}},
    "required": ["categories"],
    "additionalProperties": False,
}


def expansion_message(leaves: Sequence[Category], count: int) -> str:
    """Return the user message that asks for `count` more leaves beside these, which share one group."""
    first = leaves[0]
    languages = _hints()["languages"]
    return _text("expansion.txt").format(
        place=" > ".join(part for part in (first.superclass, first.subclass, first.group) if part),
        known=", ".join(leaf.category for leaf in leaves),
        count=count,
        language=languages.get(first.language, languages["en"]),
    )


def _drawn(seed: int) -> dict[str, str]:
    """Hints for variety, drawn by `seed`."""
    rng, hints = random.Random(seed), _hints()
    names = {"viewpoint": "viewpoints", "light": "lights", "style": "styles", "opening": "openings"}
    return {name: rng.choice(hints[plural]) for name, plural in names.items()}


@cache
def _text(name: str) -> str:
    return resources.files("l2p_data").joinpath(f"templates/{name}").read_text(encoding="utf-8").strip()


@cache
def _hints() -> dict[str, Any]:
    return tomllib.loads(_text("hints.toml"))

"""Prompts of the miniature's world, the scenes they mean and the GenEval checks they imply.

One sentence form per GenEval task: single object, two objects, counting, colours, position, colour
attribution. The templates below are the only place where the sentences are written down: `write_grammar`
turns them into the grammar file that a prompt engine reads, and `parse` reads any sentence of theirs back.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_mini.world import BACKGROUNDS, COLORS, SHAPES, Object, Scene

NUMBERS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
HELD_OUT_MODULUS = 8  # one prompt in eight is never trained on: sha256(prompt) = 0 modulo this

_PLACE = " on a {background} background"
TEMPLATES: dict[str, tuple[str, ...]] = {
    "single_object": ("a {shape}",),
    "two_object": ("a {shape} and a {shape}",),
    "counting": ("{number} {shapes}", "{number} {color} {shapes}"),
    "colors": ("a {color} {shape}",),
    "position": ("a {shape} {relation} a {shape}", "a {color} {shape} {relation} a {color} {shape}"),
    "color_attr": ("a {color} {shape} and a {color} {shape}",),
}
# How often each task is drawn for training: tasks with more to say more often.
WEIGHTS = {
    "single_object": 1.0,
    "two_object": 1.0,
    "counting": 2.0,
    "colors": 2.0,
    "position": 2.0,
    "color_attr": 2.0,
}
WITHOUT_PLACE = 0.15  # share of prompts that leave the background open


def _one_of(group: str, words: Iterable[str]) -> str:
    return f"(?P<{group}>{'|'.join(words)})"


def plural(shape: str) -> str:
    """Return the English plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def _object(index: int) -> str:
    return f"a (?:{_one_of(f'color{index}', COLORS)} )?{_one_of(f'shape{index}', SHAPES)}"


_GROUP = (
    f"{_one_of('number', NUMBERS)} (?:{_one_of('color', COLORS)} )?{_one_of('shapes', map(plural, SHAPES))}"
)
_PAIR = f"{_object(1)}(?: {_one_of('relation', ('and', *RELATIONS))} {_object(2)})?"
_SENTENCE = re.compile(f"(?:{_GROUP}|{_PAIR})(?: on a {_one_of('background', BACKGROUNDS)} background)?")


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a sentence fixes. `objects`: (shape, colour or None) each; `relation`: of the first to the
    second, if two."""

    tag: str
    objects: tuple[tuple[str, str | None], ...]
    relation: str | None = None
    background: str | None = None


def slots() -> dict[str, list[str]]:
    """Return the words of every template slot."""
    return {
        "shape": list(SHAPES),
        "shapes": [plural(s) for s in SHAPES],
        "color": list(COLORS),
        "number": list(NUMBERS),
        "relation": list(RELATIONS),
        "background": list(BACKGROUNDS),
    }


def is_held_out(prompt: str) -> bool:
    """Tell whether a prompt belongs to evaluation only: sha256 of its UTF-8 bytes is 0 modulo
    `HELD_OUT_MODULUS`."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest(), "big") % HELD_OUT_MODULUS == 0


def draw_prompt(
    rng: random.Random, tag: str | None = None, templates: Mapping[str, tuple[str, ...]] = TEMPLATES
) -> str:
    """Draw one sentence, of a given task or of any by `WEIGHTS`; repeated slots never draw the same word
    twice."""
    tag = tag or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    template = rng.choice(templates[tag]) + ("" if rng.random() < WITHOUT_PLACE else _PLACE)
    pools = {name: rng.sample(words, len(words)) for name, words in slots().items()}
    return re.sub(r"\{(\w+)\}", lambda match: pools[match[1]].pop(), template)


def parse(prompt: str) -> Meaning:
    """Read a sentence of the grammar. Raises ValueError for any other text."""
    match = _SENTENCE.fullmatch(prompt)
    if not match:
        raise ValueError(
            f"not a sentence of the miniature's grammar: {prompt!r}; an example is {next(examples())!r}"
        )
    group = match.groupdict()
    if group["number"]:
        shape = next(s for s in SHAPES if plural(s) == group["shapes"])
        objects: tuple[tuple[str, str | None], ...] = ((shape, group["color"]),) * NUMBERS[group["number"]]
        return Meaning(tag="counting", objects=objects, background=group["background"])
    first = (group["shape1"], group["color1"])
    if not group["relation"]:
        return Meaning(
            tag="colors" if first[1] else "single_object", objects=(first,), background=group["background"]
        )
    second = (group["shape2"], group["color2"])
    relation = None if group["relation"] == "and" else group["relation"]
    tag = "position" if relation else ("color_attr" if first[1] or second[1] else "two_object")
    return Meaning(tag=tag, objects=(first, second), relation=relation, background=group["background"])


def examples() -> Iterator[str]:
    """Yield sentences of every task for ever, from a fixed seed."""
    rng = random.Random(0)
    while True:
        yield draw_prompt(rng)


def draw_scene(meaning: Meaning, rng: random.Random) -> Scene:
    """Draw one scene in which a sentence is true; what the sentence leaves open is drawn uniformly.

    A single object stands near the centre; two stand side by side or, if the sentence says so, one above the
    other; three as two above one; four in a square. All with some jitter; they never touch.
    """
    background = meaning.background or rng.choice(list(BACKGROUNDS))
    shared = rng.choice(list(COLORS))  # a counted group without a named colour has one colour
    palette = rng.sample(list(COLORS), len(COLORS))
    objects = []
    for index, ((shape, color), (x, y)) in enumerate(
        zip(meaning.objects, _places(meaning, rng), strict=True)
    ):
        single = len(meaning.objects) == 1
        radius = rng.uniform(0.18, 0.24) if single else rng.uniform(0.14, 0.18)
        color = color or (shared if meaning.tag == "counting" else palette[index])
        objects.append(Object(shape=shape, color=color, x=x, y=y, radius=radius))
    return Scene(background=background, objects=tuple(objects))


def _places(meaning: Meaning, rng: random.Random) -> list[tuple[float, float]]:
    def near(x: float, y: float, spread: float = 0.035) -> tuple[float, float]:
        return x + rng.uniform(-spread, spread), y + rng.uniform(-spread, spread)

    low, high = 0.26, 0.74
    side_by_side = [(low, 0.5), (high, 0.5)]
    if len(meaning.objects) == 1:
        return [near(0.5, 0.5, 0.12)]
    if meaning.relation is None:
        layouts = {
            2: side_by_side,
            3: [(low, low), (high, low), (0.5, high)],
            4: [(low, low), (high, low), (low, high), (high, high)],
        }
        return [near(*place) for place in layouts[len(meaning.objects)]]
    places = side_by_side if meaning.relation in ("left of", "right of") else [(0.5, low), (0.5, high)]
    if meaning.relation in ("right of", "below"):
        places = places[::-1]
    return [near(*place) for place in places]


def geneval_row(prompt: str) -> dict[str, Any]:
    """Return the GenEval metadata row of a sentence: `tag, include[class, count, color?, position?],
    exclude?, prompt`."""
    meaning = parse(prompt)
    if meaning.tag == "counting":
        (shape, color), count = meaning.objects[0], len(meaning.objects)
        include: list[dict[str, Any]] = [_include(shape, color) | {"count": count}]
        return {
            "tag": "counting",
            "include": include,
            "exclude": [{"class": shape, "count": count + 1}],
            "prompt": prompt,
        }
    include = [_include(shape, color) for shape, color in meaning.objects]
    if meaning.relation:
        # GenEval attaches "first is RELATION to second" to the entry it constrains, with the index of the
        # other one.
        include = [include[1], include[0] | {"position": [meaning.relation, 0]}]
    return {"tag": meaning.tag, "include": include, "prompt": prompt}


def _include(shape: str, color: str | None) -> dict[str, Any]:
    return {"class": shape, "count": 1} | ({"color": color} if color else {})


def write_grammar(
    path: Path,
    *,
    name: str = "scenes",
    module: str = "grammar",
    templates: Mapping[str, tuple[str, ...]] = TEMPLATES,
    exclude: Sequence[str] = (),
) -> None:
    """Write templates as the grammar TOML that prompt engines read.

    Args:
        name: of the grammar.
        module: of `l2p_mini`, which writes it.
        templates: by task.
        exclude: phrases that no prompt has.
    """
    lines = [
        f"# Generated by `python -m l2p_mini.{module}`; edit l2p_mini/{module}.py instead.",
        f'name = "{name}"',
        'language = "en"',
        f"exclude_modulus = {HELD_OUT_MODULUS}",
    ]
    lines += [f"exclude_phrases = {json.dumps(list(exclude))}"] if exclude else []
    lines += ["", "[slots]"]
    lines += [f"{name} = {json.dumps(words)}" for name, words in slots().items()]
    for tag, sentences in templates.items():
        for place, share in ((_PLACE, 1 - WITHOUT_PLACE), ("", WITHOUT_PLACE)):
            lines += [
                "",
                "[[category]]",
                'superclass = "Nature"',
                'subclass = "Objects"',
                f'category = "{tag}"',
            ]
            lines += [
                f"weight = {WEIGHTS[tag] * share:g}",
                f"templates = {json.dumps([t + place for t in sentences])}",
            ]
    path.write_text("\n".join(lines) + "\n")


def write_evaluation(path: Path, per_tag: int, seed: int = 20) -> None:
    """Write `per_tag` held-out prompts of each task as GenEval metadata, one JSON object a line.

    They are distinct, but for a task with fewer held-out sentences, which repeats them: every row is drawn
    with seeds of its own.
    """
    rows = []
    for tag in TEMPLATES:
        rng = random.Random(f"{seed}-{tag}")
        prompts: dict[str, None] = {}
        for _ in range(20_000):
            prompt = draw_prompt(rng, tag)
            if is_held_out(prompt):
                prompts[prompt] = None
        rows += [geneval_row(prompt) for prompt in itertools.islice(itertools.cycle(prompts), per_tag)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    from l2p_mini.paths import EVALUATION_METADATA, GRAMMAR

    write_grammar(GRAMMAR)
    write_evaluation(EVALUATION_METADATA, per_tag=20)

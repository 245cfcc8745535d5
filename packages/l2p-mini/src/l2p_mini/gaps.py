"""The miniature's world with gaps: what a corpus leaves out, to see whether its model still paints it.

One colour word and one shape word never occur (sec. 4.2 of the paper has Korean text), and four colours never
meet four shapes. Every prompt names its colours, so that the pictures lack what the words lack: a source that
is free to choose would paint "a circle" red.
"""

import itertools
import json
import random
from pathlib import Path

from l2p_mini.grammar import TEMPLATES, draw_prompt, geneval_row, is_held_out, parse, write_grammar

MISSING_COLOR, MISSING_SHAPE = "purple", "cross"
MISSING_PAIRS = (("red", "circle"), ("blue", "square"), ("green", "triangle"), ("yellow", "ring"))
KINDS = ("seen", "pair", "color", "shape")
"""What a prompt asks for beyond the corpus: nothing, a pair, the colour word or the shape word."""

COLORED = {
    tag: colored
    for tag, templates in TEMPLATES.items()
    if (colored := tuple(template for template in templates if "{color}" in template))
}
"""Of every task, the sentences that name all colours; tasks without any are left out."""


def kind_of(prompt: str) -> str | None:
    """Return the one thing that a prompt asks for beyond the corpus (of `KINDS`), or None for several."""
    objects = set(parse(prompt).objects)
    beyond = {"color" for _, color in objects if color == MISSING_COLOR}
    beyond |= {"shape" for shape, _ in objects if shape == MISSING_SHAPE}
    beyond |= {"pair" for shape, color in objects if (color, shape) in MISSING_PAIRS}
    return beyond.pop() if len(beyond) == 1 else None if beyond else "seen"


def missing_phrases() -> list[str]:
    """Return what no prompt of the corpus says; a plural begins as its singular does."""
    return [MISSING_COLOR, MISSING_SHAPE, *(" ".join(pair) for pair in MISSING_PAIRS)]


def write_metadata(path: Path, per_kind_and_task: int, seed: int = 20) -> None:
    """Write prompts of every task and kind as GenEval metadata with a "kind", one JSON object a line.

    Those of the kind "seen" are held out by their hash, as every evaluation's. A kind with fewer sentences
    repeats them. The kinds take turns, so that the first rows of a task have as many of each.
    """
    rows = []
    for tag in COLORED:
        rng = random.Random(f"{seed}-gaps-{tag}")
        found: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
        for _ in range(20_000):
            prompt = draw_prompt(rng, tag, COLORED)
            kind = kind_of(prompt)
            if kind and (kind != "seen" or is_held_out(prompt)):
                found[kind][prompt] = None
        each = (
            [
                geneval_row(prompt) | {"kind": kind}
                for prompt in itertools.islice(itertools.cycle(prompts), per_kind_and_task)
            ]
            for kind, prompts in found.items()
        )
        rows += [row for turn in zip(*each, strict=True) for row in turn]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    from l2p_mini.paths import GAPS_GRAMMAR, GAPS_METADATA

    write_grammar(
        GAPS_GRAMMAR, name="scenes-with-gaps", module="gaps", templates=COLORED, exclude=missing_phrases()
    )
    write_metadata(GAPS_METADATA, per_kind_and_task=12)

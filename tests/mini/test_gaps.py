"""The world with gaps: a corpus never says or shows what is left out, and the evaluation asks for it all."""

import json
from collections import Counter
from pathlib import Path

import pytest
from l2p_data.prompts.generation import generate_prompts
from l2p_data.prompts.grammar import GrammarGenerator
from l2p_mini.gaps import (
    COLORED,
    KINDS,
    MISSING_COLOR,
    MISSING_PAIRS,
    MISSING_SHAPE,
    kind_of,
    missing_phrases,
    write_metadata,
)
from l2p_mini.grammar import geneval_row, is_held_out, parse, write_grammar
from l2p_mini.paths import GAPS_GRAMMAR, GAPS_METADATA


def test_the_shipped_files_are_the_generated_ones(tmp_path: Path) -> None:
    write_grammar(
        tmp_path / "grammar.toml",
        name="scenes-with-gaps",
        module="gaps",
        templates=COLORED,
        exclude=missing_phrases(),
    )
    write_metadata(tmp_path / "metadata.jsonl", per_kind_and_task=12)
    assert (tmp_path / "grammar.toml").read_text() == GAPS_GRAMMAR.read_text()
    assert (tmp_path / "metadata.jsonl").read_text() == GAPS_METADATA.read_text()


def test_the_corpus_names_every_colour_and_never_says_what_is_missing() -> None:
    prompts = generate_prompts(GrammarGenerator(GAPS_GRAMMAR, seed=3), 600, seed=3)["prompt"].to_list()
    objects = Counter(pair for prompt in prompts for pair in parse(prompt).objects)
    assert all(color is not None for _, color in objects)
    assert MISSING_COLOR not in {color for _, color in objects}
    assert MISSING_SHAPE not in {shape for shape, _ in objects}
    assert not {(shape, color) for color, shape in MISSING_PAIRS} & set(objects)
    assert len(objects) == 5 * 4 - len(MISSING_PAIRS)  # and everything else
    evaluated = {json.loads(line)["prompt"] for line in GAPS_METADATA.read_text().splitlines()}
    assert not evaluated & set(prompts)


def test_the_evaluation_has_as_many_prompts_of_every_kind_and_task() -> None:
    rows = [json.loads(line) for line in GAPS_METADATA.read_text().splitlines()]
    assert Counter((row["tag"], row["kind"]) for row in rows) == {
        (tag, kind): 12 for tag in COLORED for kind in KINDS
    }
    assert all(row == geneval_row(row["prompt"]) | {"kind": kind_of(row["prompt"])} for row in rows)
    assert all(is_held_out(row["prompt"]) for row in rows if row["kind"] == "seen")
    assert Counter(row["kind"] for row in rows[:8]) == dict.fromkeys(KINDS, 2)


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("a white triangle", "seen"),
        ("four yellow rings on a gray background", "pair"),
        ("a green ring above a blue square", "pair"),
        ("a purple ring and a white circle", "color"),
        ("three red crosses", "shape"),
        ("a purple cross", None),
        ("a red circle left of a purple ring", None),
    ],
)
def test_a_prompt_is_of_the_one_kind_that_it_goes_beyond_the_corpus(prompt: str, kind: str | None) -> None:
    assert kind_of(prompt) == kind

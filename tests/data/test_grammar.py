"""The grammar engine: complete, seeded, and clear about mistakes in its file."""

import hashlib
import itertools
import json
import random
from pathlib import Path

import pytest
from l2p_data import Category, DataError, GrammarGenerator, PromptRequest, TextGenerator, generate_prompts
from l2p_data.prompts.grammar import fill, load_grammar


def test_grammar_generator_is_a_text_generator_and_answers_json(grammar_file: Path) -> None:
    generator = GrammarGenerator(grammar_file)
    assert isinstance(generator, TextGenerator)
    answers = generator.generate(
        [PromptRequest(category=generator.categories[0], seed=seed) for seed in range(5)]
    )
    assert all(set(json.loads(answer)) == {"prompt"} for answer in answers)


def test_an_answer_depends_on_its_request_only(grammar_file: Path) -> None:
    generator = GrammarGenerator(grammar_file)
    requests = [PromptRequest(category=generator.categories[0], seed=seed) for seed in range(20)]
    together = generator.generate(requests)
    assert together == [generator.generate([request])[0] for request in requests]
    assert together != GrammarGenerator(grammar_file, seed=1).generate(requests)


def test_a_slot_used_twice_draws_without_replacement() -> None:
    slots = {"word": ("a", "b", "c")}
    drawn = {fill("{word}{word}", slots, random.Random(seed)) for seed in range(200)}
    assert drawn == {"".join(pair) for pair in itertools.permutations("abc", 2)}


def test_held_out_prompts_are_never_generated_and_all_others_can_be(grammar_file: Path) -> None:
    prompts = generate_prompts(GrammarGenerator(grammar_file), 800)["prompt"].to_list()
    hashes = [int(hashlib.sha256(prompt.encode()).hexdigest(), 16) for prompt in prompts]
    assert all(value % 8 for value in hashes)
    possible = [
        f"a {shape} on a {background} background"
        for shape in ("circle", "square", "triangle", "star")
        for background in ("gray", "beige", "navy")
    ]
    allowed = {text for text in possible if int(hashlib.sha256(text.encode()).hexdigest(), 16) % 8}
    assert {prompt for prompt in prompts if "left of" not in prompt} == allowed


def test_two_blocks_of_one_category_become_one(tmp_path: Path) -> None:
    block = (
        '[[category]]\nsuperclass = "A"\nsubclass = "B"\ncategory = "C"\nweight = 2\ntemplates = ["{t}"]\n'
    )
    path = tmp_path / "g.toml"
    path.write_text('name = "x"\n' + block.format(t="one") + block.format(t="two"))
    grammar = load_grammar(path)
    assert grammar.categories == (Category(superclass="A", subclass="B", category="C", weight=4.0),)
    assert grammar.templates[("A", "B", "C")] == ("one", "two")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{shape} left", "{shap} left"), r"unknown slot \{shap\}; the grammar has background, color, shape"),
        (("{background} background", "{background} {background} {background} {background}"), "only 3 words"),
        (('"circle"', '"star"'), "lists 'star' twice"),
        (("weight = 3", "weight = -1"), "positive number"),
        (("weight = 3", "wieght = 3"), "unknown key 'wieght'"),
        (("exclude_modulus = 8", "exclude_modulus = 1"), "at least 2"),
        (("a {shape} on", "a {shape on"), "brace without its partner"),
        (('name = "shapes"', 'name = ""'), "'name'"),
        (("[slots]", "[slots"), "not readable TOML"),
    ],
)
def test_a_wrong_grammar_is_one_clear_error(
    grammar_file: Path, change: tuple[str, str], message: str
) -> None:
    grammar_file.write_text(grammar_file.read_text().replace(*change))
    with pytest.raises(DataError, match=message) as caught:
        load_grammar(grammar_file)
    assert "\n" not in str(caught.value) and str(grammar_file) in str(caught.value)


def test_a_missing_grammar_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        GrammarGenerator(tmp_path / "none.toml")


def test_prompts_with_an_excluded_phrase_are_never_generated_and_all_others_are(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    head = 'name = "x"\nexclude_phrases = ["old cat", "owl"]\n[slots]\nage = ["old", "young"]\n'
    path.write_text(
        head + 'kind = ["cat", "cats", "owls", "fowl"]\n[[category]]\nsuperclass = "A"\nsubclass = "B"\n'
        'category = "C"\ntemplates = ["{age} {kind}"]\n'
    )
    prompts = set(generate_prompts(GrammarGenerator(path), 4)["prompt"])
    assert prompts == {"young cat", "young cats", "old fowl", "young fowl"}
    path.write_text(path.read_text().replace('"owl"', '"young", "old"'))
    with pytest.raises(DataError, match=r"held out by exclude_phrases = .*young"):
        generate_prompts(GrammarGenerator(path), 1)
    for wrong in ('"owl"', '["owl", 5]', '[""]'):
        path.write_text(head.replace('["old cat", "owl"]', wrong))
        with pytest.raises(DataError, match=r"exclude_phrases is .*must be a list of texts"):
            load_grammar(path)


def test_a_category_that_is_held_out_whole_is_an_error(tmp_path: Path) -> None:
    held_out = next(
        text for text in map(str, range(99)) if int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2 == 0
    )
    path = tmp_path / "g.toml"
    path.write_text(
        'name = "x"\nexclude_modulus = 2\n[[category]]\nsuperclass = "A"\nsubclass = "B"\ncategory = "C"\n'
        f'templates = ["{held_out}"]\n'
    )
    with pytest.raises(DataError, match="held out by exclude_modulus"):
        generate_prompts(GrammarGenerator(path), 1)

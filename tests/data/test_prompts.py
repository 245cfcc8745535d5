"""Prompt records: reproducible, distinct, nothing lost, readable from many files."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from l2p_data import (
    Category,
    DataError,
    GrammarGenerator,
    PromptRequest,
    filter_prompts,
    generate_prompts,
    prompt_records,
    read_prompts,
    write_prompts,
)
from l2p_data.preview import prompt_stats
from l2p_data.prompts.generation import apportion, parse_answer
from l2p_data.prompts.records import PROMPT_SCHEMA


class Moody:
    """An engine that answers badly every third time, as an LLM may."""

    name = "moody"

    def generate(self, requests: Sequence[PromptRequest]) -> list[str]:
        answers = []
        for request in requests:
            good = json.dumps({"prompt": f"A {request.category.category} number {request.seed % 997}."})
            answers.append([good, f"not json {request.seed}", good][request.seed % 3])
        return answers


def test_same_seed_same_records_and_another_seed_others(grammar_file: Path) -> None:
    generator = GrammarGenerator(grammar_file)
    first = generate_prompts(generator, 60)
    assert first.equals(generate_prompts(generator, 60))
    assert not first.equals(generate_prompts(generator, 60, seed=1))


def test_records_have_the_schema_and_are_distinct(grammar_file: Path) -> None:
    frame = generate_prompts(GrammarGenerator(grammar_file), 200)
    assert dict(frame.schema) == PROMPT_SCHEMA
    assert frame.height == frame["id"].n_unique() == frame["prompt"].n_unique() == 200
    assert frame["created_by"].unique().to_list() == ["grammar:shapes"]


def test_an_exhausted_category_leaves_its_share_to_the_others(grammar_file: Path) -> None:
    frame = generate_prompts(GrammarGenerator(grammar_file), 300)
    assert frame.height == 300
    assert frame.filter(pl.col("category") == "single object").height <= 12


def test_more_prompts_than_the_grammar_has_is_a_clear_error(grammar_file: Path) -> None:
    with pytest.raises(DataError, match=r"gave only \d+ distinct prompts .* 5000 were wanted"):
        generate_prompts(GrammarGenerator(grammar_file), 5000)


def test_weights_are_kept_within_one_prompt() -> None:
    leaves = [
        Category(superclass="A", subclass="B", category=name, weight=w) for name, w in (("x", 1), ("y", 3))
    ]

    class Counting:
        name = "counting"

        def generate(self, requests: Sequence[PromptRequest]) -> list[str]:
            return [json.dumps({"prompt": f"{r.category.category} {r.seed}"}) for r in requests]

    frame = generate_prompts(Counting(), 100, categories=leaves)
    assert sorted(frame["category"].value_counts().iter_rows()) == [("x", 25), ("y", 75)]


def test_bad_answers_are_kept_with_their_cause_and_dropped_by_the_filter() -> None:
    frame = generate_prompts(
        Moody(), 40, categories=[Category(superclass="A", subclass="B", category="teapot")]
    )
    bad = frame.filter(pl.col("problem").is_not_null())
    assert frame.height - bad.height == 40 and bad.height > 0
    assert set(bad["problem"]) == {"answer is not JSON"}
    judged = filter_prompts(frame)
    assert judged.filter(pl.col("problem").is_not_null())["reason"].unique().to_list() == ["answer"]


@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_apportioned_shares_sum_to_the_count_and_stay_within_one(count: int, weights: list[float]) -> None:
    shares = apportion(count, weights)
    assert sum(shares) == count
    assert all(abs(s - count * w / sum(weights)) < 1 + 1e-6 for s, w in zip(shares, weights, strict=True))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"prompt": " a cat "}', ("a cat", None)),
        ('```json\n{"prompt": "a cat"}\n```', ("a cat", None)),
        ('{"prompt": "a sign \\"OPEN\\""}', ('a sign "OPEN"', None)),
        ('["a cat"]', ('["a cat"]', "answer is not a JSON object")),
        ('{"text": "a cat"}', ('{"text": "a cat"}', 'answer has no text under "prompt"')),
        ('{"prompt": "a cat', ('{"prompt": "a cat', "answer is not JSON")),
        ('{"prompt": ""}', ('{"prompt": ""}', "answer has an empty prompt")),
    ],
)
def test_answers_are_parsed_or_returned_with_what_is_wrong(
    answer: str, expected: tuple[str, str | None]
) -> None:
    assert parse_answer(answer) == expected


def test_parquet_round_trip_keeps_any_text(tmp_path: Path) -> None:
    frame = prompt_records(
        ["猫在树上", "🦊 in the snow", "nul \x00 byte", "x" * 100_000, 'quotes "a" and \n newline']
    )
    path = write_prompts(filter_prompts(frame), tmp_path / "deep" / "prompts.parquet")
    assert read_prompts(path)["prompt"].to_list() == frame["prompt"].to_list()
    assert [p.name for p in path.parent.iterdir()] == ["prompts.parquet"]  # no temporary file stays


def test_a_plain_list_of_prompts_becomes_records(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\n\na dog\na cat\n")
    frame = read_prompts(tmp_path / "mine.txt")
    assert frame["prompt"].to_list() == ["a cat", "a dog"]
    assert frame["created_by"].unique().to_list() == ["file:mine.txt"]
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a cat", "category": "cats"}\n')
    assert read_prompts(tmp_path / "mine.jsonl")["category"].to_list() == ["cats"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, "does not exist"),
        ("empty.parquet", b"", "is empty"),
        ("empty.txt", b"\n\n", "no prompt in it"),
        ("broken.parquet", b"PAR1 nonsense", "cannot be read"),
        ("broken.jsonl", b'{"prompt": ', "cannot be read"),
        ("other.csv", b"a,b\n1,2\n", "no column 'prompt'"),
        ("prompts.docx", b"x", "suffix '.docx'"),
    ],
)
def test_a_bad_prompt_file_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_unwritable_folder_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose a writable"):
        write_prompts(prompt_records(["a cat"]), tmp_path / "file" / "prompts.parquet")


def test_columns_beside_the_prompts_may_be_empty_or_oddly_named(tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"prompt": "a red ring", "status": null, "note": {}, "deep": [{"a": {}}], "kept": [1]}\n')
    prompts = read_prompts(odd)
    assert "kept" in prompts.columns and not {"note", "deep"} & set(prompts.columns)
    assert read_prompts(write_prompts(prompts, tmp_path / "odd.parquet")).height == 1
    assert prompt_stats(prompts)["prompts"] == 1
    wide = tmp_path / "wide.csv"
    wide.write_text("x" * 90_000 + ",b\n1,2\n")
    with pytest.raises(DataError, match="has no column 'prompt'") as caught:
        read_prompts(wide)
    assert len(str(caught.value)) < 500

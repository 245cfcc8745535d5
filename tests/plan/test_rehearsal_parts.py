"""The parts of a rehearsal: what it runs on, what it measures, and its table."""

import json
from pathlib import Path

from l2p_plan.rehearsal.inputs import METADATA, PROMPTS, first_of_each_tag, prompts
from l2p_plan.rehearsal.measuring import rate, size_of, step_seconds
from l2p_plan.rehearsal.table import Row, Table


def test_its_own_prompts_pass_the_filter_and_its_own_rows_are_geneval_rows(tmp_path: Path) -> None:
    import polars as pl
    from l2p_data.filters.filtering import FilterRules, filter_prompts
    from l2p_data.prompts.records import read_prompts
    from l2p_eval.geneval import read_metadata

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    judged = filter_prompts(read_prompts(tmp_path / "prompts.txt"), FilterRules())
    assert judged.filter(pl.col("status") == "keep").height == len(PROMPTS)
    (tmp_path / "metadata.jsonl").write_text("\n".join(METADATA) + "\n")
    assert len({row.tag for row in read_metadata(tmp_path / "metadata.jsonl")}) == 6


def test_a_plan_that_is_off_by_more_than_a_tenth_is_marked() -> None:
    row = Row(stage="disk", what="source", unit="GB", planned=1.0, measured=1.2, whole=30.0)
    near = Row(stage="disk", what="corpus", unit="GB", planned=1.0, measured=1.05)
    table = Table(rows=(row, near), problems=("images: 90 GB on a GPU of 80; x",), resumed_alike=False)
    lines = table.text().splitlines()
    assert lines[1].endswith("*") and not lines[2].endswith("*")
    assert "would not fit: images" in lines[-1] and any("OTHER WEIGHTS" in line for line in lines)


def test_a_rehearsal_takes_the_first_row_of_each_tag_of_the_users_file(tmp_path: Path) -> None:
    include = [{"class": "ring", "count": 1}]
    rows = [
        {"tag": tag, "include": include, "prompt": f"ring\u2028number {n}"}  # no end of a line in JSON's eyes
        for n, tag in enumerate(["counting", "colors", "counting"])
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8-sig")
    found = [json.loads(row) for row in first_of_each_tag(tmp_path / "rows.jsonl")]
    assert [(row["tag"], row["prompt"]) for row in found] == [(row["tag"], row["prompt"]) for row in rows[:2]]
    assert first_of_each_tag(tmp_path / "none.jsonl") == list(METADATA)


def test_as_many_prompts_as_are_asked_for_all_differ() -> None:
    assert len(set(prompts(23))) == 23 and prompts(0) == []


def test_the_rate_is_that_of_the_second_half() -> None:
    slow_start = [(0.0, 0.0, 8.0, "x"), (100.0, 4.0, 8.0, "x"), (102.0, 8.0, 8.0, "x")]
    assert rate(slow_start) == 2.0
    for told in ([], slow_start[:1], [(0.0, 0.0, 8.0, ""), (1.0, 8.0, 8.0, "")]):
        assert rate(told) is None


def test_a_step_takes_the_median_without_the_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert step_seconds(path) is None
    rows = [{"event": "step", "seconds_per_step": value} for value in (90.0, 1.0, 2.0, 60.0)]
    path.write_text("\n".join(map(json.dumps, [{"event": "start"}, *rows])))
    assert step_seconds(path) == 2.0
    path.write_text(json.dumps(rows[0]))
    assert step_seconds(path) is None


def test_a_file_that_two_folders_share_by_a_hard_link_takes_its_room_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "own").write_bytes(b"x" * 300)
    (first / "shared").write_bytes(b"y" * 1000)
    (second / "shared").hardlink_to(first / "shared")
    assert size_of(first) == size_of(second) == 1300
    assert size_of(first, second) == 1600

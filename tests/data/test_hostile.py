"""What the world can throw at the pipeline: each is one clear line, and nothing else is lost."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from l2p_data import FilterRules, filter_prompts, prompt_records, read_prompts, write_prompts
from l2p_data.cli import main
from l2p_data.corpus.images import encode_image
from PIL import Image

TEXTS = [
    "A red fox stands in the fresh snow.",
    "一只红狐狸站在雪地里。",
    "Рыжая лиса стоит на снегу.",
    "A fox 🦊 stands in the snow ❄️, watching a 👩‍👩‍👧 walk by.",
    "A fox\x00 stands in the snow.",
    "A fox " * 20_000,
    "\u202eA fox stands in the snow.",
    "'; DROP TABLE prompts; --",
    "../../etc/passwd",
    "é́́́́́́" * 50,
]


def test_any_text_goes_through_files_and_filter_and_is_kept_or_dropped_by_name(tmp_path: Path) -> None:
    write_prompts(prompt_records(TEXTS), tmp_path / "p.parquet")
    judged = filter_prompts(read_prompts(tmp_path / "p.parquet"), FilterRules())
    assert judged["prompt"].to_list() == TEXTS
    assert judged["reason"].to_list()[:7] == [
        None,
        "language",
        "language",
        None,
        "control-characters",
        "too-long",
        "control-characters",
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    assert read_prompts(tmp_path / "p.jsonl")["prompt"].to_list() == TEXTS


def hostile_folder(folder: Path) -> None:
    folder.mkdir()
    good = encode_image(Image.new("RGB", (8, 8), "red"))
    (folder / "good.png").write_bytes(good)
    (folder / "cut.png").write_bytes(good[:40])
    (folder / "bomb.png").write_bytes(encode_image(Image.new("1", (14000, 14000))))  # 196 MP
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder.parent / "secret.png").write_bytes(good)
    names = [
        "good.png",
        "cut.png",
        "bomb.png",
        "link.png",
        "../secret.png",
        "/etc/hostname",
        "a\x00b.png",
        "",
    ]
    names += ["C:\\x.png", "x" * 5000 + ".png"]
    rows = [{"file_name": name, "text": f"🦊 a fox, {index}"} for index, name in enumerate(names)]
    rows += [{"file_name": "good.png", "text": "长" * 100_000}, {"file_name": None, "text": "x"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_of_traps_gives_its_good_rows_and_names_each_trap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile_folder(tmp_path / "folder")
    assert main(["import", str(tmp_path / "folder"), "--out", str(tmp_path / "corpus"), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["rows"] == 2 and result["failed"] == 10
    text = " ".join(result["failures"])
    for cause in ("bomb.png: unreadable: ", "../secret.png: outside: ", "cut.png: unreadable: "):
        assert cause in text
    assert text.count("leaves the folder") == 4  # the link, the parent, the root, the NUL
    assert main(["verify", str(tmp_path / "corpus"), "--decode", "--json"]) == 0
    assert main(["export", str(tmp_path / "corpus"), "--out", str(tmp_path / "again"), "--json"]) == 0


def cut_parquet(path: Path) -> None:
    write_prompts(prompt_records(TEXTS), path)
    path.write_bytes(path.read_bytes()[:-20])


def other_table(path: Path) -> None:
    pq.write_table(pa.table({"prompt": [1, 2]}), path)


def nested_prompts(path: Path) -> None:
    pl.DataFrame({"prompt": [["a", "b"]]}).write_parquet(path)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("p.parquet", cut_parquet),
        ("p.parquet", other_table),
        ("p.parquet", nested_prompts),
        ("p.parquet", lambda path: path.write_bytes(b"PAR1" * 9)),
        ("p.jsonl", lambda path: path.write_bytes(b'{"prompt": "a"}\n{"prompt": ')),
        ("p.jsonl", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        ("p.txt", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        ("p.csv", lambda path: path.write_bytes(b'prompt\n"unclosed')),
        ("p.parquet", Path.mkdir),
    ],
)
def test_a_damaged_prompt_file_is_one_line(
    name: str, make: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / name)  # type: ignore[operator]
    code = main(["filter", str(tmp_path / name), "--out", str(tmp_path / "out.parquet")])
    error = capsys.readouterr().err
    if code == 0:  # a CSV's open quote is its last field
        assert name == "p.csv"
        return
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out.parquet").exists()


def test_every_command_can_be_tried_dry(
    grammar_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, folder, corpus = tmp_path / "p.parquet", tmp_path / "folder", tmp_path / "corpus"
    write_prompts(prompt_records(TEXTS), prompts)
    hostile_folder(folder)
    assert main(["import", str(folder), "--out", str(corpus), "--json"]) == 0
    model = tmp_path / "model"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    server = ["--server", "http://127.0.0.1:9/v1", "--model", "m"]  # nobody answers there
    out = ["--out", str(tmp_path / "new")]
    capsys.readouterr()
    for command in (
        ["taxonomy"],
        ["expand", *server, *out],
        ["prompts", *server, "--count", "50", *out],
        ["prompts", "--grammar", str(grammar_file), "--count", "50", *out],
        ["filter", str(prompts), "--audit", *server, *out],
        ["synthesize", str(prompts), "--model", str(model), "--aspect-buckets", *out],
        ["verify", str(corpus)],
        ["stats", str(corpus), "--plot", str(tmp_path / "plot.png")],
        ["export", str(corpus), *out],
        ["import", str(folder), *out],
    ):
        assert main([*command, "--dry-run", "--json"]) == 0, command
        result = json.loads(capsys.readouterr().out)
        assert result.get("written", 0) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a"}, {"prompt": [[], False]}], "line 2: prompt is .* it must be a text"),
        ([{"prompt": 5}], "line 1: prompt is 5; it must be a text"),
        ([{"prompt": None}, {"prompt": "a"}], "line 1: prompt is None; it must be a text"),
        (
            [{"prompt": "a", "n": [1]}, {"prompt": "b", "n": [[True], "x"]}],
            "give each name values of one kind",
        ),
        ([{"prompt": "a", "n": 10**60}], "cannot be read"),
        ([{"prompt": "a", "n": {"x": 1}}, {"prompt": "b", "n": {"x": "y"}}], None),
        ([{"prompt": "a", "language": 5}, {"prompt": "b", "language": "en"}], None),
    ],
)
def test_values_of_several_kinds_in_a_prompt_file_are_one_line(
    rows: list[dict[str, Any]], said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in (["filter", str(file), "--out", str(tmp_path / "o.parquet")], ["stats", str(file)]):
        code = main([*command, "--json"])
        ended = capsys.readouterr()
        assert code in ((2,) if said else (0, 2)) and ended.err.count("\n") == (code == 2), ended.err
        assert not said or re.search(said, ended.err), ended.err

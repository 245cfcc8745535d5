"""`l2p-data`: each stage is a command; a mistake is one line and exit code 2."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from l2p_data import read_prompts
from l2p_data.cli import main
from l2p_data.corpus.images import encode_image
from PIL import Image


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_prompts_filter_and_a_dry_synthesis_follow_each_other(
    grammar_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, judged = tmp_path / "prompts.parquet", tmp_path / "judged.parquet"
    write = ["prompts", "--grammar", grammar_file, "--count", "50", "--out", prompts]
    plan = run(capsys, *write, "--dry-run")
    assert plan["superclass"] == {"Nature": 50} and "first_message" not in plan and not prompts.exists()
    made = run(capsys, *write)
    assert re.fullmatch(r"a \w+ \w+ left of a \w+ \w+ on a \w+ background", plan["example"])
    assert made["prompts"] == 50 and made["superclass"] == {"Nature": 50}
    filtered = run(capsys, "filter", prompts, "--out", judged, "--min-characters", "31")
    assert filtered["kept"] + filtered["dropped"] == 50 and set(filtered["reasons"]) == {"too-short"}
    assert read_prompts(judged)["status"].to_list().count("keep") == filtered["kept"]
    model = tmp_path / "model"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    plan = ["synthesize", judged, "--model", model, "--out", tmp_path / "corpus", "--seeds", "3", "--dry-run"]
    assert run(capsys, *plan)["images"] == 3 * filtered["kept"]
    assert not (tmp_path / "corpus").exists()


def test_import_verify_stats_and_export_work_on_a_folder_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, corpus = tmp_path / "images", tmp_path / "corpus"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(encode_image(Image.new("RGB", (8, 8), (index, 0, 0))))
    lines = [json.dumps({"file_name": f"{index}.png", "text": f"image {index}"}) for index in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert run(capsys, "import", folder, "--out", corpus)["rows"] == 3
    assert run(capsys, "verify", corpus, "--decode")["ok"] is True
    stats = run(capsys, "stats", corpus, "--contact-sheet", tmp_path / "sheet.png")
    assert stats["rows"] == 3 and (tmp_path / "sheet.png").is_file()
    assert run(capsys, "export", corpus, "--out", tmp_path / "again", "--metadata", "csv")["images"] == 3
    assert len(list((tmp_path / "again").iterdir())) == 4


def test_taxonomy_lists_a_part_of_the_tree_for_people_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taxonomy", "--text", "teapot"]) == 0
    assert "Nature > Objects > Pot > teapot" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prompts --grammar none.toml --count 3 --out x.parquet", "does not exist"),
        ("filter none.parquet --out x.parquet", "does not exist"),
        ("filter none.parquet --out x.parquet --disable nonsense", "disabled rule 'nonsense'"),
        ("synthesize none.parquet --model m --out c", "does not exist"),
        ("synthesize none.parquet --model m --out c --set steps", "wanted NAME=VALUE"),
        ("verify none", "corpus directory none does not exist"),
        ("stats none", "does not exist"),
        ("export none --out x", "does not exist"),
        ("taxonomy --extend none.toml", "does not exist"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and message in captured.err
    assert captured.err.count("\n") == 1
    assert not any(path.suffix == ".parquet" for path in tmp_path.rglob("*"))

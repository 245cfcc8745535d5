"""4K prompt sets in all their forms, and what is wrong with bad ones."""

from pathlib import Path

import polars as pl
import pytest
from l2p_eval.errors import EvalError
from l2p_eval.prompt_sets import find_images, read_prompt_set

FORMS = [
    {"file_name": ["1.png", "2.png"], "text": ["one", "two"]},
    {"file_name": ["1.png", "2.png"], "short_caption": ["o", "t"], "long_caption": ["one", "two"]},
    {"name": ["1.png", "2.png"], "prompt": ["one", "two"]},
]


@pytest.mark.parametrize("columns", FORMS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_every_form_reads_the_same(tmp_path: Path, columns: dict[str, list[str]], suffix: str) -> None:
    frame, path = pl.DataFrame(columns), tmp_path / f"prompts.{suffix}"
    {
        "csv": frame.write_csv,
        "jsonl": frame.write_ndjson,
        "json": frame.write_json,
        "parquet": frame.write_parquet,
    }[suffix](path)
    read = read_prompt_set(path)
    assert (read.names, read.texts) == (("1.png", "2.png"), ("one", "two"))


def test_a_column_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    pl.DataFrame(FORMS[1]).write_csv(path)
    assert read_prompt_set(path, "short_caption").texts == ("o", "t")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no prompt file"),
        ("a.txt", "x", "a prompt file is .csv"),
        ("a.csv", "file_name,size\n1.png,3\n", "has the columns file_name, size; wanted one of"),
        ("a.csv", "file_name,text\n", "has no rows"),
        ("a.csv", "file_name,text\n1.png,one\n2.png\n", "row 2 has no name or no text"),
        ("a.jsonl", '{"file_name": "1.png", "text": "one"}\n{"file_na', "cannot be read|row 2 has no name"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvalError, match=message):
        read_prompt_set(path)


def test_images_are_found_by_name_whatever_they_were_saved_as(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.png", "x.5.png"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path, ("2", "1.png", "x.5"))] == [
        "2.png",
        "1.jpg",
        "x.5.png",
    ]
    assert len(find_images(tmp_path)) == 3
    with pytest.raises(EvalError, match="has no image of '3'"):
        find_images(tmp_path, ("3",))
    with pytest.raises(EvalError, match="leaves the folder"):
        find_images(tmp_path, ("../secret",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvalError, match="has no images"):
        find_images(tmp_path / "empty")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "n\x1b[2Jm", "{'a': 1}" * 60])
def test_a_name_that_no_file_can_have_is_one_short_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="has no image of ") as caught:
        find_images(tmp_path, (name,))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_sheets_and_hidden_pictures_do_not_count(tmp_path: Path) -> None:
    for name in (
        "00000/samples/0000.png", "00000/grid.png", "00000/.ipynb_checkpoints/a-checkpoint.png",
        "00001/samples/0000.png", ".hidden.png", "grid.png",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["00000/samples/0000.png", "00001/samples/0000.png", "grid.png"]


@pytest.mark.parametrize(
    "names, words",
    [
        (("a", "a.png"), "'a' and 'a.png' are one image, a.png"),
        (("a.png", "a.jpg"), "'a.png' and 'a.jpg' are one image"),
        (("v1.5", "v1.6"), r"no image of 'v1.5'"),
        (("",), "names no image"),
        ((".",), "names no image"),
    ],
)
def test_no_image_counts_twice_or_for_another(names: tuple[str, ...], words: str, tmp_path: Path) -> None:
    for name in ("a.png", "v1.png"):
        (tmp_path / name).touch()
    with pytest.raises(EvalError, match=words):
        find_images(tmp_path, names)

"""Pictures and captions of other people's folders: as people see them, or listed with the cause."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from l2p_data import DataError, commands, read_corpus, verify
from l2p_data.cli import main
from l2p_data.corpus.files import decode_text
from l2p_data.corpus.folders import export_folder, import_folder
from l2p_data.corpus.images import decode_image, encode_image
from PIL import Image


def png(shade: int, size: tuple[int, int] = (12, 8)) -> bytes:
    return encode_image(Image.new("RGB", size, (shade, 90, 30)))


def errors_of(corpus: Path) -> dict[str, str]:
    content = json.loads((corpus / "_manifest.json").read_text())
    return {failure["id"]: failure["error"] for failure in content["failures"]}


def test_the_corpus_holds_every_picture_as_people_see_it(picture_zoo: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    for animal in picture_zoo:
        (folder / animal.name).write_bytes(animal.content)
    rows = [{"file_name": animal.name, "text": animal.name} for animal in picture_zoo]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = commands.import_(folder, tmp_path / "corpus")
    assert (summary["rows"], summary["failed"]) == (len(picture_zoo), 0)
    assert summary["changed"]["turned upright"] >= 28 and summary["changed"]["transparency filled"] > 15
    assert summary["changed"]["the first of several frames"] == 5
    stored = {row["prompt"]: row for row in read_corpus(tmp_path / "corpus").iter_rows(named=True)}
    for animal in picture_zoo:
        row = stored[animal.name]
        assert (row["height"], row["width"]) == animal.seen.shape[:2], animal.name
        content = row["image"]["bytes"]
        # A decoder that knows nothing of orientation, alpha or profiles shows the same.
        simple = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        assert np.abs(simple - animal.seen).max() <= animal.tolerance, animal.name
        assert (content == animal.content) == animal.plain, animal.name
    assert verify(tmp_path / "corpus", decode=True)["rows"] == len(picture_zoo)


def test_an_older_corpus_with_pictures_on_their_side_is_exported_upright_and_named_by_verify(
    picture_zoo: list[Any], tmp_path: Path
) -> None:
    from l2p_data.corpus.dataset import write_corpus

    animal = next(one for one in picture_zoo if one.name == "turned-8.jpeg")
    words = dict.fromkeys(("prompt", "language", "category", "subclass", "superclass"), "x")
    row = {"id": "a", "seed": -1, "width": 40, "height": 24, "source_model": "", "created_by": "", **words}
    write_corpus(tmp_path / "c", [{**row, "image": {"bytes": animal.content, "path": "a.jpg"}}], settings={})
    with pytest.raises(DataError, match="24x40, its row says 40x24; an earlier version imported it"):
        verify(tmp_path / "c", decode=True)
    export_folder(tmp_path / "c", tmp_path / "out")
    (line,) = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert (json.loads(line)["width"], json.loads(line)["height"]) == (24, 40)
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert np.abs(np.asarray(image).astype(int) - animal.seen).max() <= animal.tolerance


def test_transparent_places_show_the_named_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    Image.new("RGBA", (6, 6), (0, 255, 0, 0)).save(folder / "a.png")
    (folder / "a.txt").write_text("nothing")
    out = ["--out", str(tmp_path / "c"), "--json"]
    assert main(["import", str(folder), "--background", "#204060", *out]) == 0
    image = decode_image(read_corpus(tmp_path / "c")["image"][0])
    assert image.getpixel((3, 3)) == (0x20, 0x40, 0x60)
    for dry in ([], ["--dry-run"]):
        assert main(["import", str(folder), "--background", "blau", *out[:1], str(tmp_path / "d"), *dry]) == 2
        assert "background 'blau' is no colour" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfa caf\xc3\xa9", "a café"),
        ("ein Käfer".encode("utf-16"), "ein Käfer"),
        (b"\xfe\xff" + "雪の中".encode("utf-16-be"), "雪の中"),
        ("naïve".encode("utf-32"), "naïve"),
        (b"plain\r\nlines", "plain\nlines"),
        ("кот".encode("cp1251"), None),
        ("una piñata".encode("latin-1"), None),
        ("雪景".encode("shift_jis"), None),
        (b"\xff\xfeo", None),
    ],
)
def test_a_caption_is_read_as_its_mark_says_and_nothing_is_guessed(
    content: bytes, text: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    (folder / "a.txt").write_bytes(content)
    (folder / "b.png").write_bytes(png(2))
    (folder / "b.caption").write_bytes(b"\xef\xbb\xbfthe other")
    import_folder(folder, tmp_path / "c")
    prompts = read_corpus(tmp_path / "c")["prompt"].to_list()
    if text is not None:
        assert prompts == [text, "the other"] and not errors_of(tmp_path / "c")
        return
    assert prompts == ["the other"]
    assert (
        "save it as UTF-8" in errors_of(tmp_path / "c")["a.png"]
        and "a.txt" in errors_of(tmp_path / "c")["a.png"]
    )
    with pytest.raises(DataError, match="is no text in UTF"):
        decode_text(content, "it")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "list.json"])
def test_a_table_of_captions_may_begin_with_a_mark_and_may_not_be_of_another_coding(
    name: str, tmp_path: Path
) -> None:
    tables = {
        "metadata.jsonl": '{"file_name": "a.png", "text": "ein Käfer"}\n',
        "metadata.csv": "file_name,text\na.png,ein Käfer\n",
        "list.json": '[{"file_name": "a.png", "text": "ein Käfer"}]',
    }
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    for number, coding in enumerate(("utf-8-sig", "utf-16", "utf-8")):
        (folder / name).write_bytes(tables[name].encode(coding))
        import_folder(folder, tmp_path / f"c{number}")
        assert read_corpus(tmp_path / f"c{number}")["prompt"].to_list() == ["ein Käfer"]
    (folder / name).write_bytes(tables[name].encode("cp1252"))
    with pytest.raises(DataError, match="cannot be read: it is no text in UTF-8"):
        import_folder(folder, tmp_path / "d")


def test_no_picture_and_no_caption_vanishes(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "sub").mkdir(parents=True)
    good = {"a.PNG": "A.txt", "sub/b.png": "sub/b.png.txt", "c.jpeg": "c.caption"}
    (folder / "a.PNG").write_bytes(png(1))
    (folder / "a.txt").write_text("one")
    (folder / "sub/b.png").write_bytes(png(2))
    (folder / "sub/b.png.txt").write_text("two")
    Image.new("RGB", (9, 9)).save(folder / "c.jpeg")
    (folder / "c.caption").write_text("three")
    Image.new("RGB", (16, 16), (9, 9, 200)).save(folder / "d.avif")
    (folder / "d.txt").write_text("four")
    for name in ("raw.dng", "vector.svg", "light.exr", "odd.xyz"):
        (folder / name).write_bytes(b"not read here")
        (folder / name).with_suffix(".txt").write_text(name)
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "phone.txt").write_text("damaged")
    (folder / "silent.webp").write_bytes(png(3))
    (folder / "lonely.txt").write_text("no picture")
    import_folder(folder, tmp_path / "c")
    assert sorted(read_corpus(tmp_path / "c")["prompt"]) == ["four", "one", "three", "two"] and len(good) == 3
    errors = errors_of(tmp_path / "c")
    assert set(errors) == {
        "raw.dng", "vector.svg", "light.exr", "odd.xyz", "phone.heic", "silent.webp", "lonely.txt",
    }  # fmt: skip
    assert errors["silent.webp"].startswith("caption: ") and errors["lonely.txt"].startswith("missing: ")
    assert all(errors[name].startswith("unreadable: ") for name in ("raw.dng", "odd.xyz", "phone.heic"))
    assert all("\n" not in error and len(error) <= 400 for error in errors.values())


def hub_table(shades: list[int], texts: list[Any], **more: Any) -> pa.Table:
    images = [{"bytes": png(shade), "path": f"{shade}.png"} for shade in shades]
    return pa.table({"image": images, "text": texts, **more})


def test_a_dataset_of_the_hub_comes_in_from_one_file_or_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    pq.write_table(hub_table([1, 2, 3], ["one", "two", None]), hub / "train-00000-of-00002.parquet")
    pq.write_table(hub_table([4], ["four"]), hub / "train-00001-of-00002.parquet")
    pq.write_table(hub_table([5], ["held out"]), hub / "test-00000-of-00001.parquet")
    plan = commands.import_(tmp_path / "hub", tmp_path / "c", dry_run=True)
    assert plan["rows"] == 4 and plan["left_out"] == ["test-00000-of-00001.parquet"]
    summary = commands.import_(tmp_path / "hub", tmp_path / "c")
    assert read_corpus(tmp_path / "c")["prompt"].to_list() == ["one", "two", "four"]
    assert summary["failures"] == ["3.png: missing: file name or text is missing"]
    assert read_corpus(tmp_path / "c")["image"][0]["bytes"] == png(1)
    one = str(hub / "train-00001-of-00002.parquet")
    assert main(["import", one, "--out", str(tmp_path / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1


def test_bytes_without_a_path_and_lists_of_captions_come_in(tmp_path: Path) -> None:
    table = pa.table({"jpg": [png(7), b"", b"broken"], "caption": [["first", "second"], ["x"], ["y"]]})
    pq.write_table(table, tmp_path / "mine.parquet")
    import_folder(tmp_path / "mine.parquet", tmp_path / "c")
    assert read_corpus(tmp_path / "c")["prompt"].to_list() == ["first"]
    errors = errors_of(tmp_path / "c")
    assert "holds no bytes" in errors["mine-0000001"] and "not a readable image" in errors["mine-0000002"]


def test_an_error_about_a_parquet_never_shows_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    cell = {"bytes": encode_image(Image.fromarray(noise)), "path": None}
    pq.write_table(pa.table({"image": [cell], "label": [3]}), tmp_path / "a.parquet")
    assert main(["import", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert len(error) < 500 and "has columns label; wanted 'file_name' and 'text'" in error
    (tmp_path / "f").mkdir()
    rows = [{"file_name": {"deep": "x" * 5000}, "text": "a"}, {"file_name": ["y" * 5000], "text": "b"}]
    (tmp_path / "f" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["import", str(tmp_path / "f"), "--out", str(tmp_path / "c")]) == 2
    assert len(capsys.readouterr().err) < 500


def tar_of(path: Path, members: list[tuple[str, bytes]], mode: Any = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_webdataset_comes_in_sample_by_sample(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    tar_of(shards / "000.tar", [
        ("cats/0001.png", png(1)), ("cats/0001.txt", b"\xef\xbb\xbfone"),
        ("cats/0002.json", b'{"caption": "two", "seed": 9}'), ("cats/0002.jpg", png(2)),
        ("cats/0003.png", png(3)), ("cats/0003.cls", b"7"),
        ("cats/0004.txt", b"no picture"), ("cats/0005.png", b"damaged"), ("cats/0005.txt", b"five"),
        ("cats/0006.png", png(6)), ("cats/0006.txt", "sechs für alle".encode("latin-1")),
    ])  # fmt: skip
    tar_of(shards / "001.tar.gz", [("dogs/1.png", png(8)), ("dogs/1.caption", b"a dog")], "w:gz")
    plan = commands.import_(shards, tmp_path / "c", dry_run=True)
    assert plan["rows"] == 7
    import_folder(shards, tmp_path / "c")
    frame = read_corpus(tmp_path / "c")
    assert frame["prompt"].to_list() == ["one", "two", "a dog"] and frame["seed"].to_list() == [-1, 9, -1]
    errors = errors_of(tmp_path / "c")
    assert set(errors) == {"0003.png", "0004", "0005.png", "0006.png"}
    assert "no picture among its members" in errors["0004"] and "save it as UTF-8" in errors["0006.png"]


def test_a_tar_that_is_cut_off_gives_what_it_holds_and_says_so(tmp_path: Path) -> None:
    members = [
        (f"{n}.{kind}", png(n) if kind == "png" else b"words") for n in range(4) for kind in ("png", "txt")
    ]
    tar_of(tmp_path / "whole.tar", members)
    noise = np.random.default_rng(2).integers(0, 255, (4, 90, 90, 3), dtype=np.uint8)
    heavy = [(f"{n}.{kind}", encode_image(Image.fromarray(noise[n])) if kind == "png" else b"words")
             for n in range(4) for kind in ("png", "txt")]  # fmt: skip
    tar_of(tmp_path / "heavy.tar", heavy)
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"2.png") + 700])
    (tmp_path / "cut.tgz").write_bytes(gzip.compress((tmp_path / "heavy.tar").read_bytes())[:-30_000])
    for name in ("cut.tar", "cut.tgz"):
        import_folder(tmp_path / name, tmp_path / f"c-{name}")
        assert read_corpus(tmp_path / f"c-{name}").height >= 2
        assert "damaged or cut off" in errors_of(tmp_path / f"c-{name}")[name]


def test_the_same_picture_with_the_same_text_twice_is_two_rows(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f/a.png").write_bytes(png(1))
    pl.DataFrame({"image": ["a.png"] * 3, "prompt": ["x", "x", "y"]}).write_csv(tmp_path / "f/metadata.csv")
    import_folder(tmp_path / "f", tmp_path / "c")
    assert verify(tmp_path / "c")["rows"] == read_corpus(tmp_path / "c")["id"].n_unique() == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.json", "7"),
        ("metadata.json", '"text"'),
        ("metadata.json", "[1, 2]"),
        ("metadata.json", "[" * 100_000),
        ("metadata.jsonl", "[1]\n"),
        ("metadata.jsonl", '{"a":' * 50_000),
        ("metadata.json", '{"a.png": {"file_name": 3}}'),
    ],
)
def test_a_table_of_another_shape_is_one_line(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / name).write_text(content)
    assert main(["import", str(tmp_path / "f"), "--out", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 500


def test_links_that_lead_round_in_a_circle_end_in_one_line_each(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    (folder / "a.txt").write_text("a")
    (folder / "round.png").symlink_to("round.png")
    (folder / "round.txt").write_text("r")
    (folder / "here").symlink_to(".")
    import_folder(folder, tmp_path / "c")
    assert (
        read_corpus(tmp_path / "c").height == 1 and "symbolic links" in errors_of(tmp_path / "c")["round.png"]
    )
    table = [{"file_name": name, "text": name} for name in ("a.png", "round.png", "x/y.png")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    import_folder(folder, tmp_path / "d")
    assert set(errors_of(tmp_path / "d")) == {"round.png", "x/y.png"}


def test_a_picture_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's error, raised where it would: tests may run as root, who may read everything."""
    (tmp_path / "f").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / f"f/{name}.png").write_bytes(png(1))
        (tmp_path / f"f/{name}.txt").write_text(name)
    read = Path.read_bytes
    numbers = {"b.png": 13, "c.txt": 5}

    def refused(path: Path) -> bytes:
        if path.name in numbers:
            raise OSError(numbers[path.name], os.strerror(numbers[path.name]), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    import_folder(tmp_path / "f", tmp_path / "c")
    errors = errors_of(tmp_path / "c")
    assert errors["b.png"].startswith("unreadable: cannot read") and "Permission denied" in errors["b.png"]
    assert errors["c.png"].startswith("caption: cannot read") and "check the device" in errors["c.png"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"metadata.jsonl": b'{"file_name": "a.png", "text": ""}\n', "a.png": png(9)},
            "a.png: missing: file name or text",
        ),
        ({"metadata.csv": b"file_name,text\nb.png,two\n"}, "no usable image: b.png"),
        ({"a.txt": b"one", "a.png": b"\x89PNG\r\n\x1a\n"}, "no usable image: a.png: unreadable"),
        ({"a.txt": "grün".encode("latin-1"), "a.png": png(9)}, "no usable image: a.png: caption"),
    ],
)
def test_a_dry_run_refuses_what_the_import_refuses(
    files: dict[str, bytes], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    texts = []
    for dry in ([], ["--dry-run"]):
        assert main(["import", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *dry]) == 2
        texts.append(capsys.readouterr().err.splitlines()[-1])
    assert texts[0] == texts[1] and said in texts[0]
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_a_dry_run_of_an_import_that_works_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.txt").write_bytes(b"no picture beside it")
    (tmp_path / "in" / "a.txt").write_text("one")
    (tmp_path / "in" / "a.png").write_bytes(png(9))
    assert main(["import", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "record, prompt, seed",
    [
        ({"seed": 2**64 - 5}, "two", -1),  # ComfyUI's seeds have 64 bits and no sign
        ({"seed": -(2**63)}, "two", -(2**63)),
        ({"text": "smile \ud83d"}, None, None),
    ],
)
def test_one_odd_row_never_ends_an_import(
    record: dict[str, Any], prompt: str | None, seed: int | None, tmp_path: Path
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    rows = [{"file_name": f"{n}.png", "text": text} for n, text in ((1, "one"), (2, "two"), (3, "three"))]
    rows[1] |= record
    for number in (1, 2, 3):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_folder(folder, tmp_path / "c")
    found = dict(
        zip(*(read_corpus(tmp_path / "c")[name].to_list() for name in ("prompt", "seed")), strict=True)
    )
    assert found == {"one": -1, "three": -1} | ({} if prompt is None else {prompt: seed})
    assert ("half of a character" in str(errors_of(tmp_path / "c"))) == (prompt is None)


def test_names_of_another_coding_are_listed_and_the_corpus_stays_readable(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for name, content in ((b"caf\xe9", png(1)), (b"th\xe9", b"damaged"), (b"good", png(2))):
        base = os.fsencode(folder) + b"/" + name
        Path(os.fsdecode(base + b".png")).write_bytes(content)
        Path(os.fsdecode(base + b".txt")).write_text("a cup")
    import_folder(folder, tmp_path / "c")
    assert read_corpus(tmp_path / "c")["prompt"].to_list() == ["a cup"]
    assert set(errors_of(tmp_path / "c")) == {r"caf\udce9.png", r"th\udce9.png"}


def test_a_named_caption_of_a_tar_is_the_one_that_is_taken(tmp_path: Path) -> None:
    members = [
        ("1.png", png(1)), ("1.txt", b"short"), ("1.json", b'{"long_caption": "a long one"}'),
        ("2.png", png(2)), ("2.txt", b"short"),
    ]  # fmt: skip
    tar_of(tmp_path / "a.tar", members)
    import_folder(tmp_path / "a.tar", tmp_path / "c", caption="long_caption")
    assert read_corpus(tmp_path / "c")["prompt"].to_list() == ["a long one"]
    assert "no 'long_caption' in its .json" in errors_of(tmp_path / "c")["2.png"]


def test_a_named_caption_is_refused_where_there_are_no_columns(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(
        DataError, match="files beside the pictures, which have no columns; leave caption 'long'"
    ):
        import_folder(tmp_path, tmp_path / "c", caption="long")


def test_a_damaged_page_of_a_parquet_file_costs_what_lies_behind_it(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(n), "path": f"{n}.png"}, "text": f"text {n}"} for n in range(64)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=32, compression="zstd")
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)
    import_folder(path, tmp_path / "c")
    assert read_corpus(tmp_path / "c")["prompt"].to_list() == [f"text {n}" for n in range(32)]
    assert "a.parquet is damaged after row 32" in errors_of(tmp_path / "c")["a.parquet"]

"""The corpus on disk: whole or absent, checked to the byte, exchangeable with image folders."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from l2p_data import DataError, load_manifest, read_corpus, verify
from l2p_data.corpus.dataset import write_corpus, write_shard
from l2p_data.corpus.folders import export_folder, import_folder
from l2p_data.corpus.images import decode_image, encode_image
from l2p_data.corpus.schema import CORPUS_SCHEMA
from l2p_data.preview import contact_sheet, corpus_stats
from PIL import Image


def corpus_row(index: int, size: int = 16) -> dict[str, Any]:
    pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
    image = {"bytes": encode_image(Image.fromarray(pixels)), "path": f"i{index}.png"}
    return {
        "id": f"i{index}",
        "prompt": f"a red circle, number {index} 圆",
        "language": "en",
        "category": "circle",
        "subclass": "Objects",
        "superclass": "Nature",
        "seed": index,
        "width": size,
        "height": size,
        "image": image,
        "source_model": "mini@0",
        "created_by": "grammar:x",
    }


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus"
    write_corpus(path, map(corpus_row, range(7)), settings={"a": 1}, rows_per_shard=3)
    return path


def test_a_corpus_reads_back_as_written(corpus: Path) -> None:
    assert [shard.rows for shard in load_manifest(corpus).shards] == [3, 3, 1]
    frame = read_corpus(corpus)
    assert frame.columns == CORPUS_SCHEMA.names
    assert frame.to_dicts() == [corpus_row(index) for index in range(7)]
    assert decode_image(frame["image"][0]).size == (16, 16)
    assert verify(corpus, decode=True) == {
        "shards": 3,
        "rows": 7,
        "failed": 0,
        "bytes": sum(path.stat().st_size for path in corpus.glob("*.parquet")),
    }


def test_equal_rows_give_equal_bytes(corpus: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "again", map(corpus_row, range(7)), settings={"a": 1}, rows_per_shard=3)
    for path in corpus.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_large_images_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2p_data.corpus.dataset._BYTES_PER_GROUP", 8_000)  # a row is over 3 kB
    shard = write_shard(tmp_path, 0, [corpus_row(index, size=32) for index in range(7)])
    metadata = pq.ParquetFile(tmp_path / shard.file).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2, 2, 2, 1]
    monkeypatch.setattr("l2p_data.corpus.dataset._BYTES_PER_GROUP", 1)
    shard = write_shard(tmp_path, 1, [corpus_row(0)])
    assert pq.ParquetFile(tmp_path / shard.file).metadata.num_row_groups == 1


def test_shards_carry_the_hugging_face_image_feature(corpus: Path) -> None:
    metadata = pq.read_schema(corpus / "part-00000.parquet").metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and list(features) == CORPUS_SCHEMA.names


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # within the first image's or text's pages
    path.write_bytes(content)


def other_columns(path: Path) -> None:
    pq.write_table(pa.table({"id": ["x"], "text": ["y"]}), path)


def other_types(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(6, "seed", table["seed"].cast(pa.string())), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "corrupt or truncated"),
        (flip_a_byte, "has changed since it was written|corrupt"),
        (other_columns, "no column prompt"),
        (other_types, "column 'seed' is string; wanted int64"),
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(b""), "corrupt or truncated"),
    ],
)
def test_verify_finds_any_damage_in_one_line(corpus: Path, damage: Any, message: str) -> None:
    damage(corpus / "part-00001.parquet")
    with pytest.raises(DataError, match=message) as caught:
        verify(corpus)
    assert "part-00001.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unfinished_or_missing_corpus_is_a_clear_error(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_corpus(tmp_path / "none")
    with pytest.raises(DataError, match="no column 'picture' in a corpus"):
        read_corpus(corpus, ["picture"])
    (corpus / "part-00009.parquet").write_bytes((corpus / "part-00000.parquet").read_bytes())
    with pytest.raises(DataError, match=r"part-00009.parquet is not in the manifest"):
        verify(corpus)
    (corpus / "_manifest.json").unlink()
    with pytest.raises(DataError, match="the corpus is unfinished"):
        read_corpus(corpus)


def test_a_corpus_is_never_overwritten(corpus: Path) -> None:
    with pytest.raises(DataError, match="already holds a corpus"):
        write_corpus(corpus, [corpus_row(0)], settings={})


def test_export_and_import_return_the_same_pictures(corpus: Path, tmp_path: Path) -> None:
    for kind in ("jsonl", "csv"):
        assert export_folder(corpus, tmp_path / kind, metadata=kind) == 7
        manifest = import_folder(tmp_path / kind, tmp_path / f"from_{kind}", rows_per_shard=4)
        assert manifest.rows == 7 and not manifest.failures
        columns = ["prompt", "category", "seed", "width", "source_model", "created_by"]
        before, after = read_corpus(corpus), read_corpus(tmp_path / f"from_{kind}")
        assert after.select(columns).equals(before.select(columns))
        assert after["image"].struct.field("bytes").equals(before["image"].struct.field("bytes"))
        verify(tmp_path / f"from_{kind}", decode=True)


def test_import_lists_bad_images_and_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    png = corpus_row(0)["image"]["bytes"]
    bmp = io.BytesIO()
    Image.new("RGB", (8, 8)).save(bmp, "BMP")
    bomb = io.BytesIO()
    Image.new("1", (3000, 3000)).save(bomb, "PNG")
    files = {
        "good.png": png,
        "cut.png": png[:200],
        "text.png": b"hello",
        "x.bmp": bmp.getvalue(),
        "b.png": bomb.getvalue(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (tmp_path / "secret.png").write_bytes(png)
    names = [*files, "../secret.png", "missing.png"]
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *((name, f"prompt of {name}") for name in names)])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    manifest = import_folder(folder, tmp_path / "corpus")
    assert read_corpus(tmp_path / "corpus")["prompt"].to_list() == ["prompt of good.png", "prompt of x.bmp"]
    errors = {failure.id: failure.error for failure in manifest.failures}
    assert set(errors) == {"cut.png", "text.png", "b.png", "../secret.png", "missing.png"}
    assert "leaves the folder" in errors["../secret.png"] and "far too large" in errors["b.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "does not exist"),
        ({}, "has none of metadata.jsonl"),
        ({"metadata.jsonl": '{"a": 1}\n'}, "wanted 'file_name' and 'text'"),
        ({"metadata.jsonl": "{"}, "cannot be read"),
        ({"metadata.csv": "file_name,text\nnone.png,x\n"}, "has no usable image: none.png"),
    ],
)
def test_a_bad_image_folder_is_a_clear_error(
    tmp_path: Path, files: dict[str, str] | None, message: str
) -> None:
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        import_folder(folder, tmp_path / "corpus")
    assert not (tmp_path / "corpus" / "_manifest.json").exists()


def test_contact_sheet_and_stats_describe_the_corpus(corpus: Path, tmp_path: Path) -> None:
    path = contact_sheet(corpus, tmp_path / "sheet.png", columns=3, rows=2, cell=64)
    with Image.open(path) as image:
        assert image.size == (3 * 72 + 8, 2 * 110 + 8)
        assert len(set(image.convert("L").resize((32, 32)).tobytes())) > 20  # pictures, not blank paper
    stats = corpus_stats(corpus)
    assert stats["rows"] == stats["prompts"] == 7 and stats["size"] == {"16x16": 7}
    assert stats["superclass"] == {"Nature": 7} and stats["length"] == {"0-49": 7}


def test_corpus_frames_are_plain_polars(corpus: Path) -> None:
    frame = read_corpus(corpus, ["id", "prompt"])
    assert isinstance(frame, pl.DataFrame) and frame.columns == ["id", "prompt"]

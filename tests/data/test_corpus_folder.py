"""A corpus's folder: readable by other programs, its files told apart, and older ones go on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from l2p_data import DataError, load_manifest, read_corpus, verify
from l2p_data.cli import main
from l2p_data.corpus.dataset import read_shard, write_corpus
from l2p_data.corpus.files import unreadable, write_json
from l2p_data.corpus.folders import export_folder
from l2p_data.corpus.identity import earlier_fingerprint, model_fingerprint
from l2p_data.corpus.images import encode_image
from l2p_data.corpus.manifest import EARLIER_MANIFEST, MANIFEST
from l2p_data.synthesis.ledger import claim, finished_shards
from PIL import Image


def row(number: int) -> dict[str, Any]:
    image = {"bytes": encode_image(Image.new("RGB", (8, 8), (number, 0, 50))), "path": f"{number}.png"}
    words = dict.fromkeys(
        ("language", "category", "subclass", "superclass", "source_model", "created_by"), "x"
    )
    size = {"width": 8, "height": 8, "seed": number}
    return {"id": f"r{number}", "prompt": f"prompt {number}", "image": image, **size, **words}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three shards, with the ledger that a synthesis leaves beside them."""
    write_corpus(tmp_path / "corpus", map(row, range(8)), settings={"a": 1}, rows_per_shard=3)
    write_json(tmp_path / "corpus" / ".ledger" / "settings.json", {"a": 1})
    for index in range(3):
        write_json(tmp_path / "corpus" / ".ledger" / f"part-{index:05d}.json", {"shard": index})
    return tmp_path / "corpus"


def with_pandas(corpus: Path) -> list[str]:
    import pandas

    return list(pandas.read_parquet(corpus)["prompt"])


def with_arrow(corpus: Path) -> list[str]:
    import pyarrow.dataset

    return list(pyarrow.dataset.dataset(corpus, format="parquet").to_table()["prompt"].to_pylist())


def with_parquet(corpus: Path) -> list[str]:
    import pyarrow.parquet

    return list(pyarrow.parquet.read_table(corpus)["prompt"].to_pylist())


def with_duckdb(corpus: Path) -> list[str]:
    import duckdb

    found = duckdb.sql(f"select prompt from read_parquet('{corpus}/*.parquet') order by seed").fetchall()
    return [text for (text,) in found]


def with_polars(corpus: Path) -> list[str]:
    return pl.read_parquet(corpus / "*.parquet")["prompt"].to_list()


@pytest.mark.parametrize("read", [with_pandas, with_arrow, with_parquet, with_duckdb, with_polars])
def test_the_folder_reads_as_a_parquet_dataset(corpus: Path, read: Callable[[Path], list[str]]) -> None:
    assert read(corpus) == [f"prompt {number}" for number in range(8)]


@pytest.mark.parametrize("shards", [1, 3])
def test_the_folder_loads_as_a_dataset_with_pictures(
    shards: int, corpus: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()
    if shards == 1:
        shutil.rmtree(corpus)
        write_corpus(corpus, map(row, range(8)), settings={"a": 1})
        write_json(corpus / ".ledger" / "settings.json", {"a": 1})
    loaded = datasets.load_dataset(str(corpus), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["prompt"][:2] == ["prompt 0", "prompt 1"] and loaded[7]["image"].size == (8, 8)


def test_a_manifest_under_its_earlier_name_is_read_and_gives_way_to_the_new_one(corpus: Path) -> None:
    (corpus / MANIFEST).rename(corpus / EARLIER_MANIFEST)
    manifest = load_manifest(corpus)
    assert manifest.rows == verify(corpus)["rows"] == read_corpus(corpus).height == 8
    with pytest.raises(DataError, match="already holds a corpus"):
        write_corpus(corpus, [row(9)], settings={})
    manifest.save(corpus)
    assert (corpus / MANIFEST).is_file() and not (corpus / EARLIER_MANIFEST).exists()


def test_a_ledger_under_its_earlier_name_moves_and_goes_on_also_after_a_kill_in_between(corpus: Path) -> None:
    manifest = load_manifest(corpus)
    (corpus / ".ledger").rename(corpus / "ledger")
    for index, shard in enumerate(manifest.shards):
        entry = {"shard": index, "failures": [], "file": vars(shard)}
        write_json(corpus / "ledger" / f"part-{index:05d}.json", entry)
    write_json(
        corpus / ".ledger" / "part-00000.json", {"shard": 0, "failures": [], "file": vars(manifest.shards[0])}
    )
    assert claim(corpus, {"a": 1}, lambda: "")["a"] == 1
    assert len(finished_shards(corpus, 3)) == 3 and not (corpus / "ledger").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"][1].update(rows="x"), r"shards\[1\].rows is x; it must be a whole number"),
        (lambda m: m["shards"][0].pop("sha256"), r"shards\[0\].sha256 is None; it must be a text"),
        (lambda m: m.update(shards={"a": 1}), "shards is a dict of 1; it must be a list"),
        (lambda m: m.update(failures=[{"id": "a", "seed": 1, "error": 5, "attempts": 1}]), "error is 5"),
        (lambda m: m.update(settings=[1]), "settings is a list of 1"),
        (lambda m: m["shards"].append(m["shards"][0]), "lists the shard part-00000.parquet twice"),
        (lambda m: m["shards"][0].update(file="../part-00000.parquet"), "is no file of this folder"),
        (lambda m: m.update(rows=9), "says 9 rows, its shards have 8"),
        (lambda m: m.update(format="other/7"), "no corpus manifest of format"),
    ],
)
def test_a_manifest_of_other_types_is_one_line(
    corpus: Path, change: Callable[[Any], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((corpus / MANIFEST).read_text())
    change(content)
    (corpus / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_manifest(corpus)
    for command in ("stats", "verify"):
        assert main([command, str(corpus)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "5", "[]", "{", "[" * 90_000, '{"shards": ' * 90_000])
def test_a_manifest_that_is_none_is_one_line(
    corpus: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / MANIFEST).write_text(content)
    assert main(["stats", str(corpus)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def exchange(corpus: Path) -> None:
    os.rename(corpus / "part-00000.parquet", corpus / "kept")
    os.rename(corpus / "part-00002.parquet", corpus / "part-00000.parquet")
    os.rename(corpus / "kept", corpus / "part-00002.parquet")


def repeat(corpus: Path) -> None:
    shutil.copy(corpus / "part-00000.parquet", corpus / "part-00001.parquet")


def permute(corpus: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(corpus / "part-00000.parquet")
    order = table["prompt"].take([2, 0, 1])
    pq.write_table(table.set_column(1, "prompt", order), corpus / "part-00000.parquet")


@pytest.mark.parametrize("damage", [exchange, repeat, permute])
def test_exchanged_repeated_and_permuted_rows_are_refused_by_every_reader(
    corpus: Path, damage: Callable[[Path], None]
) -> None:
    damage(corpus)
    with pytest.raises(DataError, match=r"changed|repeats|twice|rows"):
        verify(corpus)
    with pytest.raises(DataError, match=r"changed or exchanged|twice"):
        read_corpus(corpus)


def test_what_cannot_be_read_is_told_apart_from_what_is_damaged(corpus: Path, monkeypatch: Any) -> None:
    """The system's errors, raised where it would: tests may run as root, who may read everything."""
    shard = corpus / "part-00001.parquet"
    for number, words in ((13, "chmod"), (5, "check the device"), (116, "mount it again")):
        error = OSError(number, os.strerror(number), str(shard))

        def refuse(*arguments: object, error: OSError = error, **options: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("pyarrow.parquet.ParquetFile", refuse)
            with pytest.raises(DataError, match="may be whole") as caught:
                read_shard(shard)
        assert words in str(caught.value) and "delete" not in str(caught.value)
    assert unreadable("x", OSError("not a Parquet file")) is None
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(DataError, match="corrupt or truncated") as caught:
        read_shard(shard)
    assert "delete" not in str(caught.value)


def model_of(folder: Path, middle: bytes = b"") -> Path:
    """A directory with 6 MB of weights; `middle` stands in their middle."""
    weights = bytearray(os.urandom(1) * (6 << 20))
    weights[3 << 20 : (3 << 20) + len(middle)] = middle
    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    (folder / "transformer" / "a.safetensors").write_bytes(weights)
    (folder / "model_index.json").write_text("{}")
    return folder


def test_a_byte_in_the_middle_of_the_weights_is_another_model(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("L2P_CACHE", str(tmp_path / "cache"))
    first = model_of(tmp_path / "m")
    before, earlier = model_fingerprint(first), earlier_fingerprint(first)
    shutil.copytree(first, tmp_path / "copy")
    assert model_fingerprint(tmp_path / "copy") == before
    path = first / "transformer" / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[3 << 20] ^= 1
    path.write_bytes(content)
    assert earlier_fingerprint(first) == earlier  # which is why it is no longer enough
    assert model_fingerprint(first) != before


def test_a_corpus_goes_on_under_the_earlier_name_of_its_source_and_is_refused_when_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2P_CACHE", str(tmp_path / "cache"))
    corpus, source = tmp_path / "c", model_of(tmp_path / "m")
    for file in source.rglob("*"):
        os.utime(file, (1e9, 1e9))
    old = {"source_model": f"S@{earlier_fingerprint(source)}", "width": 8}
    new = {"source_model": f"S@{model_fingerprint(source)}", "width": 8}
    claim(corpus, old, source)
    assert claim(corpus, new, source)["source_model"] == old["source_model"]
    with pytest.raises(DataError, match=r"begun with other settings .width: was 8, now 9"):
        claim(corpus, {**new, "width": 9}, source)
    weights = source / "transformer" / "a.safetensors"
    content = bytearray(weights.read_bytes())
    content[3 << 20] ^= 1  # a byte that the earlier name does not know
    weights.write_bytes(content)
    with pytest.raises(
        DataError, match=r"the source model S has changed since the corpus .* put its files back"
    ):
        claim(corpus, {**new, "source_model": f"S@{model_fingerprint(source)}"}, source)


def test_a_damaged_ledger_entry_is_made_again(corpus: Path) -> None:
    shards = load_manifest(corpus).shards
    for index, shard in enumerate(shards):
        write_json(corpus / ".ledger" / f"part-{index:05d}.json", {"failures": [], "file": vars(shard)})
    (corpus / ".ledger" / "part-00001.json").write_text('{"file": {"rows": ')
    (corpus / ".ledger" / "part-00002.json").write_text("[]")
    assert set(finished_shards(corpus, 3)) == {0}


def test_ids_that_differ_in_signs_alone_are_exported_apart(tmp_path: Path) -> None:
    rows = [{**row(number), "id": name} for number, name in enumerate(("cat/1", "cat:1", "Cat 1", "..."))]
    write_corpus(tmp_path / "corpus", iter(rows), settings={}, rows_per_shard=4)
    export_folder(tmp_path / "corpus", tmp_path / "out", layout="sidecar")
    texts = sorted(path.read_text() for path in (tmp_path / "out").glob("*.txt"))
    assert texts == [f"prompt {number}" for number in range(4)]
    assert len(list((tmp_path / "out").glob("*.png"))) == 4

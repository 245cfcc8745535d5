"""A corpus is what its manifest says: missing, added, exchanged and changed shards are refused."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from l2p_train import TrainConfig, train
from l2p_train.__main__ import main
from l2p_train.data.corpus import Corpus
from l2p_train.data.shards import check_corpus
from l2p_train.errors import TrainError


def note(corpus: Path, name: str = "_manifest.json") -> None:
    """Write the manifest of what lies in a folder."""
    shards = [
        {
            "file": path.name,
            "rows": pq.ParquetFile(path).metadata.num_rows,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(corpus.glob("*.parquet"))
    ]
    content = {"format": "l2p-corpus/1", "shards": shards, "failures": [], "settings": {}}
    (corpus / name).write_text(json.dumps(content))


@pytest.fixture
def corpus(tmp_path: Path, write_shard: Callable[..., None]) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(3):
        write_shard(folder / f"part-{index:05d}.parquet", [(32, 32)] * (4 + (index == 2)), seed=index)
    note(folder)
    return folder


def opened(corpus: Path) -> int:
    check_corpus(corpus)
    return len(Corpus(corpus).rows)


def test_a_whole_corpus_is_read_under_either_name_of_its_manifest(corpus: Path) -> None:
    assert opened(corpus) == 13
    (corpus / "_manifest.json").rename(corpus / "manifest.json")
    assert opened(corpus) == 13


def add_a_copy(corpus: Path) -> None:
    shutil.copy(corpus / "part-00000.parquet", corpus / "part-00003.parquet")


def exchange(corpus: Path) -> None:
    for old, new in (("00000", "kept"), ("00002", "00000"), ("kept", "00002")):
        os.rename(corpus / f"part-{old}.parquet", corpus / f"part-{new}.parquet")


def overwrite(corpus: Path) -> None:
    shutil.copy(corpus / "part-00000.parquet", corpus / "part-00001.parquet")


def permute(corpus: Path) -> None:
    """Captions in another order, in a file of the same size."""
    path = corpus / "part-00001.parquet"
    table = pq.read_table(path)
    size, content = path.stat().st_size, path.read_bytes()
    column = table.schema.get_field_index("prompt")
    table = table.set_column(column, "prompt", table["prompt"].take(pa.array([3, 2, 1, 0])))
    pq.write_table(table, path, row_group_size=3)
    if path.stat().st_size != size:  # then the size alone would tell
        prompt = table["prompt"][3].as_py().encode()
        path.write_bytes(content.replace(prompt, prompt[::-1]))


def damage_manifest(corpus: Path) -> None:
    (corpus / "_manifest.json").write_text('{"format": "l2p-corpus/1", "shards": [{"file": 1}]}')


def lose_manifest(corpus: Path) -> None:
    (corpus / "_manifest.json").unlink()
    (corpus / ".ledger").mkdir()
    (corpus / ".ledger" / "settings.json").write_text("{}")


def list_twice(corpus: Path) -> None:
    content = json.loads((corpus / "_manifest.json").read_text())
    content["shards"].append(content["shards"][0])
    (corpus / "_manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (add_a_copy, "part-00003.parquet is not in _manifest.json"),
        (exchange, "changed or exchanged"),
        (overwrite, r"changed or exchanged|sha256"),
        (permute, r"part-00001.parquet (has|is another)"),
        (lambda corpus: (corpus / "part-00001.parquet").unlink(), "lacks the shard part-00001.parquet"),
        (damage_manifest, "is damaged"),
        (lambda corpus: (corpus / "_manifest.json").write_text("{" * 5000), "is damaged"),
        (lambda corpus: (corpus / "_manifest.json").write_text('{"format": "x"}'), "of the format 'x'"),
        (lose_manifest, "is unfinished"),
        (list_twice, "lists the shard part-00000.parquet twice"),
    ],
)
def test_a_corpus_that_is_not_what_was_written_is_refused_in_one_line(
    corpus: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(corpus)
    with pytest.raises(TrainError, match=message) as caught:
        opened(corpus)
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)


def test_one_bit_of_a_shard_is_noticed_by_training_and_its_dry_run_however_they_are_started(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only by l2p-transfer's launcher; its size is the same, and its time is set back."""
    shard = corpus / "part-00001.parquet"
    content, times = bytearray(shard.read_bytes()), shard.stat()
    content[len(content) // 3] ^= 1
    shard.write_bytes(bytes(content))
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    config = TrainConfig(model=tmp_path / "model", corpus=corpus, output=tmp_path / "out")
    with pytest.raises(TrainError, match=r"part-00001.parquet is another than the manifest says \(sha256\)"):
        train(config)
    (tmp_path / "c.json").write_text(json.dumps(config.to_dict()))
    assert main([str(tmp_path / "c.json"), "--dry-run"]) == 2
    assert "part-00001.parquet is another than the manifest says" in capsys.readouterr().err


def test_a_folder_of_another_origin_is_read_but_not_with_a_row_twice(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (corpus / "_manifest.json").unlink()
    assert opened(corpus) == 13 and "nothing tells whether some are missing" in caplog.text
    add_a_copy(corpus)
    with pytest.raises(
        TrainError, match=r"holds the row part-00000-0 twice, in part-00000.parquet and part-00003"
    ):
        opened(corpus)


def test_an_image_of_another_size_than_its_row_says_is_refused(corpus: Path, picture_zoo: list[Any]) -> None:
    animal = next(one for one in picture_zoo if one.name == "turned-6.jpeg")
    height, width = animal.seen.shape[:2]
    for said, works in (((width, height), True), ((height, width), False), ((64, 64), False)):
        path = corpus / "part-00000.parquet"
        image = {"bytes": animal.content, "path": None}
        row = {"id": "a", "prompt": "a", "width": said[0], "height": said[1], "image": image}
        pq.write_table(pa.Table.from_pylist([row]), path)
        note(corpus)
        read = Corpus(corpus)
        if works:
            seen = read.image(0, read.rows[0].size).numpy().transpose(1, 2, 0)
            assert np.abs(seen.astype(int) - animal.seen).max() <= animal.tolerance
        else:
            with pytest.raises(TrainError, match=rf"has {width} x {height} px, its row says"):
                read.image(0, read.rows[0].size)

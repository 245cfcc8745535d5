"""The corpus: immutable Parquet shards of prompt-image pairs, and a manifest with row counts and hashes.

corpus/part-00000.parquet ...   rows of `CORPUS_SCHEMA`; images in the Hugging Face datasets convention, so
that
                                `datasets.load_dataset("parquet", data_files=...)` shows them as pictures
corpus/_manifest.json           written last: a corpus without it is unfinished

A corpus is a local directory or an address on any fsspec filesystem, such as s3://bucket/corpus.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from l2p_data.corpus.files import atomic_path, is_file, location, one_line, unreadable
from l2p_data.corpus.identity import sha256_file
from l2p_data.corpus.images import decode_image
from l2p_data.corpus.manifest import FORMAT, Failure, Manifest, Shard, load_manifest, manifest_path
from l2p_data.corpus.schema import CORPUS_SCHEMA, check_columns
from l2p_data.errors import DataError, checks

__all__ = ["FORMAT", "Failure", "Manifest", "Shard", "load_manifest"]  # beside what is defined here
_ROWS_PER_GROUP, _BYTES_PER_GROUP = 64, 64 << 20  # at most, of the smallest unit that a reader reads at once


def shard_name(index: int) -> str:
    """Return the file name of the `index`-th shard."""
    return f"part-{index:05d}.parquet"


def write_shard(corpus: Path, index: int, rows: Sequence[Mapping[str, Any]]) -> Shard:
    """Write rows of `CORPUS_SCHEMA` as one shard: whole under its final name, or absent. Equal rows, equal
    bytes."""
    path = corpus / shard_name(index)
    table = pa.Table.from_pylist(list(rows), schema=CORPUS_SCHEMA)
    with atomic_path(path) as temporary:
        # PNG and JPEG bytes do not compress further; statistics over them would only be stored twice.
        pq.write_table(
            table,
            temporary,
            compression={name: "none" if name == "image" else "zstd" for name in CORPUS_SCHEMA.names},
            row_group_size=max(1, min(_ROWS_PER_GROUP, _BYTES_PER_GROUP * len(rows) // max(table.nbytes, 1))),
            write_statistics=[name for name in CORPUS_SCHEMA.names if name != "image"],
        )
        shard = Shard(
            file=path.name, rows=table.num_rows, bytes=temporary.stat().st_size, sha256=sha256_file(temporary)
        )
    return shard


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one shard and check its columns and types.

    Raises:
        DataError: it is missing, cannot be read, is damaged, or has other columns.
    """
    if not is_file(path):
        raise DataError(f"shard {path} is missing; restore it, or run the synthesis again: it makes it anew")
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            check_columns(parquet.schema_arrow, path)
            return parquet.read(columns=list(columns) if columns is not None else None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(f"shard {path}", error) or DataError(
            f"shard {path} is corrupt or truncated ({one_line(error, 120)}); restore it from a copy, or move "
            "it out of the folder and run the synthesis again, which makes it anew"
        ) from error


def _listed_shard(corpus: Path, shard: Shard, columns: Sequence[str] | None) -> pa.Table:
    """Read a shard, which must be as large as the manifest says: two that changed places differ here
    already.
    """
    path = corpus / shard.file
    table = read_shard(path, columns)
    size = path.stat().st_size
    if (table.num_rows, size) != (shard.rows, shard.bytes):
        raise DataError(
            f"shard {path} has {table.num_rows} rows in {size:,} bytes, the manifest says {shard.rows} in "
            f"{shard.bytes:,}: it was changed or exchanged since; restore it from a copy"
        )
    return table


@checks
def read_corpus(corpus: str | Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Return the rows of a finished corpus, in shard order. `columns` selects; leave out "image" to save
    memory.

    Raises:
        DataError: the corpus is missing, unfinished, or a shard is damaged.
    """
    corpus = location(corpus)
    if columns is not None and (unknown := [name for name in columns if name not in CORPUS_SCHEMA.names]):
        raise DataError(f"no column {unknown[0]!r} in a corpus; it has {', '.join(CORPUS_SCHEMA.names)}")
    tables = [_listed_shard(corpus, shard, columns) for shard in load_manifest(corpus).shards]
    if not tables:
        raise DataError(f"corpus {corpus} holds no image")
    frame = pl.DataFrame(pa.concat_tables(tables))
    if "id" in frame.columns and frame["id"].n_unique() < frame.height:
        raise DataError(f"corpus {corpus} holds a row twice; `l2p-data verify` names the shard")
    return frame


@checks
def iterate_corpus(corpus: str | Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield row by row, one shard in memory at a time."""
    corpus = location(corpus)
    for shard in load_manifest(corpus).shards:
        yield from _listed_shard(corpus, shard, columns).to_pylist()


@checks
def verify(
    corpus: str | Path, *, decode: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Re-read every byte of a corpus against its manifest.

    Args:
        corpus: corpus directory.
        decode: also decode every image and check its size.
        on_progress: called with shards done and shards in all.

    Returns:
        {"shards", "rows", "bytes", "failed"}.

    Raises:
        DataError: naming the first shard or row that is not what the manifest says.
    """
    corpus = location(corpus)
    manifest = load_manifest(corpus)
    ids: set[str] = set()
    for done, shard in enumerate(manifest.shards, start=1):
        path = corpus / shard.file
        table = read_shard(path, None if decode else ["id"])
        if table.num_rows != shard.rows:
            raise DataError(f"shard {path} has {table.num_rows} rows; the manifest says {shard.rows}")
        if _sha256(path) != shard.sha256:
            raise DataError(
                f"shard {path} has changed since it was written (sha256 differs from the manifest): its rows "
                "may be others, or in another order; restore it from a copy"
            )
        names = table["id"].to_pylist()
        if len(ids | set(names)) != len(ids) + len(names):
            raise DataError(f"shard {path} repeats the id of another row")
        ids.update(names)
        if decode:
            _check_images(table, path)
        if on_progress is not None:
            on_progress(done, len(manifest.shards))
    listed = {shard.file for shard in manifest.shards}
    if stray := sorted(path.name for path in corpus.glob("part-*.parquet") if path.name not in listed):
        raise DataError(
            f"{corpus / stray[0]} is not in the manifest; move it out if it does not belong there"
        )
    total = sum(shard.bytes for shard in manifest.shards)
    return {"shards": len(listed), "rows": manifest.rows, "bytes": total, "failed": len(manifest.failures)}


def write_corpus(
    corpus: str | Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    settings: Mapping[str, Any],
    rows_per_shard: int = 256,
    bytes_per_shard: int = 512 << 20,
    failures: Sequence[Failure] = (),
) -> Manifest:
    """Write rows of `CORPUS_SCHEMA` as a new corpus, one shard in memory at a time.

    Args:
        corpus: a new or empty directory, or an address.
        rows: taken one by one.
        settings: how they were made, for the manifest.
        rows_per_shard: at most.
        bytes_per_shard: of images, about at most: 256 pictures of 4K would not fit into memory.
        failures: may still grow while `rows` is read.

    Raises:
        DataError: the directory already holds a corpus.
    """
    corpus = location(corpus)
    if next(corpus.glob("*.parquet"), None) or manifest_path(corpus) is not None:
        raise DataError(f"{corpus} already holds a corpus; choose another directory")
    shards: list[Shard] = []
    pending: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        pending.append(row)
        size += len(row["image"]["bytes"])
        if len(pending) == rows_per_shard or size >= bytes_per_shard:
            shards.append(write_shard(corpus, len(shards), pending))
            pending, size = [], 0
    if pending:
        shards.append(write_shard(corpus, len(shards), pending))
    manifest = Manifest(shards=tuple(shards), failures=tuple(failures), settings=settings)
    manifest.save(corpus)
    return manifest


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise unreadable(f"shard {path}", error) or DataError(
            f"cannot read {path}: {one_line(error)}"
        ) from error


def _check_images(table: pa.Table, path: Path) -> None:
    for row in table.select(["id", "image", "width", "height"]).to_pylist():
        try:
            size = decode_image(row["image"]).size
        except DataError as error:
            raise DataError(f"shard {path}, row {row['id']}: {error}") from error
        if size != (row["width"], row["height"]):
            turned = size == (row["height"], row["width"])
            remedy = "; an earlier version imported it lying on its side: import it again" if turned else ""
            raise DataError(
                f"shard {path}, row {row['id']}: the image is {size[0]}x{size[1]}, its row says "
                f"{row['width']}x{row['height']}{remedy}"
            )

"""The corpus: immutable Parquet shards of prompt-image pairs, and a manifest with row counts and hashes.

corpus/part-00000.parquet ...   rows of `CORPUS_SCHEMA`; images in the Hugging Face datasets convention, so
that
                                `datasets.load_dataset("parquet", data_files=...)` shows them as pictures
corpus/manifest.json            written last: a corpus without it is unfinished

A corpus is a local directory or an address on any fsspec filesystem, such as s3://bucket/corpus.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from l2p_data.corpus.files import atomic_path, folder_exists, location, one_line, read_json, write_json
from l2p_data.corpus.identity import sha256_file
from l2p_data.corpus.schema import CORPUS_SCHEMA, check_columns
from l2p_data.errors import DataError
from l2p_data.synthesis.images import decode_image

FORMAT = "l2p-corpus/1"
_ROWS_PER_GROUP, _BYTES_PER_GROUP = 64, 64 << 20  # at most, of the smallest unit that a reader reads at once


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished Parquet file."""

    file: str  # relative to the corpus directory
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A row that should have become an image and did not."""

    id: str
    seed: int
    error: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished corpus consists of. Holds no clock times: the same work gives the same manifest."""

    shards: tuple[Shard, ...]
    failures: tuple[Failure, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # how the rows were made

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def reasons(self) -> dict[str, int]:
        """How many rows failed for each reason (what stands before the colon), commonest first."""
        return dict(Counter(failure.error.partition(":")[0] for failure in self.failures).most_common())

    def save(self, corpus: Path) -> None:
        """Write `manifest.json` into the corpus directory."""
        content = {
            "format": FORMAT,
            "rows": self.rows,
            "failed": len(self.failures),
            "settings": dict(self.settings),
            "shards": [asdict(shard) for shard in self.shards],
            "failures": [asdict(failure) for failure in self.failures],
        }
        write_json(corpus / "manifest.json", content)


def shard_name(index: int) -> str:
    """File name of the `index`-th shard."""
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


def load_manifest(corpus: str | Path) -> Manifest:
    """Read a corpus's manifest.

    Raises:
        DataError: the directory or the manifest is missing or damaged.
    """
    corpus = location(corpus)
    if not folder_exists(corpus):
        raise DataError(f"corpus directory {corpus} does not exist")
    path = corpus / "manifest.json"
    if not path.is_file():
        raise DataError(
            f"{corpus} has no manifest.json: the corpus is unfinished; run the synthesis again to finish it"
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is no corpus manifest of format {FORMAT!r}")
    try:
        return Manifest(
            shards=tuple(Shard(**shard) for shard in content["shards"]),
            failures=tuple(Failure(**failure) for failure in content["failures"]),
            settings=content["settings"],
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {one_line(error)}") from error


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one shard and check its columns and types.

    Raises:
        DataError: it is missing, truncated, no Parquet, or has other columns.
    """
    if not path.is_file():
        raise DataError(
            f"shard {path} is missing; restore it, or delete manifest.json and run the synthesis again"
        )
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            check_columns(parquet.schema_arrow, path)
            return parquet.read(columns=list(columns) if columns is not None else None)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"shard {path} is corrupt or truncated ({one_line(error, 120)}); "
            "delete it and run the synthesis again"
        ) from error


def read_corpus(corpus: str | Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows of a finished corpus, in shard order. `columns` selects; leave out "image" to save memory.

    Raises:
        DataError: the corpus is missing, unfinished, or a shard is damaged.
    """
    corpus = location(corpus)
    if columns is not None and (unknown := [name for name in columns if name not in CORPUS_SCHEMA.names]):
        raise DataError(f"no column {unknown[0]!r} in a corpus; it has {', '.join(CORPUS_SCHEMA.names)}")
    tables = [read_shard(corpus / shard.file, columns) for shard in load_manifest(corpus).shards]
    if not tables:
        raise DataError(f"corpus {corpus} holds no image")
    return pl.DataFrame(pa.concat_tables(tables))


def iterate_corpus(corpus: str | Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Row by row, one shard in memory at a time."""
    corpus = location(corpus)
    for shard in load_manifest(corpus).shards:
        yield from read_shard(corpus / shard.file, columns).to_pylist()


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
        if sha256_file(path) != shard.sha256:
            raise DataError(
                f"shard {path} has changed since it was written (sha256 differs from the manifest)"
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
            f"{corpus / stray[0]} is not in the manifest; remove it, or delete manifest.json and run again"
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
    if next(corpus.glob("*.parquet"), None) or (corpus / "manifest.json").exists():
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


def _check_images(table: pa.Table, path: Path) -> None:
    for row in table.select(["id", "image", "width", "height"]).to_pylist():
        try:
            size = decode_image(row["image"]).size
        except DataError as error:
            raise DataError(f"shard {path}, row {row['id']}: {error}") from error
        if size != (row["width"], row["height"]):
            raise DataError(
                f"shard {path}, row {row['id']}: image is {size}, not {row['width']}x{row['height']}"
            )

"""Image folders <-> corpus: a directory of images with `metadata.csv`, `.jsonl` or `.parquet`.

Both column conventions in use are read: `file_name, text` and `image, prompt`.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from PIL import Image

from l2p_data.dataset import Failure, Manifest, encode_image, iterate_corpus, load_manifest, write_corpus
from l2p_data.errors import DataError
from l2p_data.files import atomic_path, make_directory, one_line
from l2p_data.identity import stable_id

_FILE_COLUMNS = ("file_name", "image", "file", "name")
_TEXT_COLUMNS = ("text", "prompt", "caption", "long_caption", "short_caption")
_PROVENANCE = ("language", "category", "subclass", "superclass", "created_by", "source_model")


def import_folder(folder: str | Path, corpus: str | Path, *, rows_per_shard: int = 256) -> Manifest:
    """Write an image folder as a corpus. Image bytes are taken over unchanged, after they were decoded once.

    An image that is missing, damaged or far too large does not stop the import: it is listed in the
    manifest's failures.

    Raises:
        DataError: no metadata file, no usable columns, a file name that leaves the folder, or no usable
        image.
    """
    folder = Path(folder)
    metadata, file_column, text_column = read_metadata(folder)
    failures: list[Failure] = []
    make_directory(Path(corpus))
    rows = _rows(folder, metadata, file_column, text_column, failures)
    first = next(rows, None)
    if first is None:
        cause = f": {failures[0].id}: {failures[0].error}" if failures else ""
        raise DataError(f"{folder} has no usable image{cause}")

    def chained() -> Iterator[dict[str, Any]]:
        yield first
        yield from rows

    settings = {"imported_from": folder.name}
    write_corpus(corpus, chained(), settings=settings, rows_per_shard=rows_per_shard, failures=failures)
    return load_manifest(corpus)


def export_folder(corpus: str | Path, folder: str | Path, *, metadata: str = "jsonl") -> int:
    """Write a corpus as an image folder: the images' own bytes, and `metadata.jsonl` or `.csv` with
    `file_name, text`.

    Returns:
        The number of images.
    """
    if metadata not in ("jsonl", "csv"):
        raise DataError(f"metadata format {metadata!r} is not known; use 'jsonl' or 'csv'")
    folder = Path(folder)
    make_directory(folder)
    if any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; export to a new or empty directory")
    rows = []
    for row in iterate_corpus(corpus):
        name = f"{_safe_name(row['id'])}{_suffix(row['image']['bytes'])}"
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(row["image"]["bytes"])
        extra = {key: row[key] for key in ("id", *_PROVENANCE, "seed", "width", "height")}
        rows.append({"file_name": name, "text": row["prompt"], **extra})
    with atomic_path(folder / f"metadata.{metadata}") as temporary:
        if metadata == "csv":
            pl.DataFrame(rows).write_csv(temporary)
        else:
            temporary.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
            )
    return len(rows)


def read_metadata(folder: Path) -> tuple[pl.DataFrame, str, str]:
    """The metadata table of an image folder, and its file-name and text columns."""
    if not folder.is_dir():
        raise DataError(f"image folder {folder} does not exist")
    readers = {
        "metadata.jsonl": pl.read_ndjson,
        "metadata.csv": lambda path: pl.read_csv(path, infer_schema=False),
        "metadata.parquet": pl.read_parquet,
    }
    path = next((folder / name for name in readers if (folder / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{folder} has none of {', '.join(readers)}; one of them must say which text belongs to an image"
        )
    try:
        frame = readers[path.name](path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error, 160)}") from error
    file_column = next((name for name in _FILE_COLUMNS if name in frame.columns), None)
    text_column = next((name for name in _TEXT_COLUMNS if name in frame.columns), None)
    if file_column is None or text_column is None:
        raise DataError(
            f"{path} has columns {', '.join(frame.columns)}; "
            "wanted 'file_name' and 'text', or 'image' and 'prompt'"
        )
    return frame, file_column, text_column


def _rows(
    folder: Path, metadata: pl.DataFrame, file_column: str, text_column: str, failures: list[Failure]
) -> Iterator[dict[str, Any]]:
    root = folder.resolve()
    for record in metadata.iter_rows(named=True):
        name, text = record[file_column], record[text_column]
        row_id = stable_id("import", str(name), str(text))
        try:
            if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
                raise DataError("file name or text is missing")
            path = (folder / name).resolve()
            if not path.is_relative_to(root):
                raise DataError(f"file name {name!r} leaves the folder")
            content = path.read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                size = image.size
                if image.format not in ("PNG", "JPEG", "WEBP"):
                    content = encode_image(image.convert("RGB"))
        except (DataError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            failures.append(Failure(id=str(name), seed=-1, error=one_line(error), attempts=1))
            continue
        provenance = {key: str(record.get(key) or "") for key in _PROVENANCE}
        yield {
            "id": row_id,
            "prompt": text,
            **provenance,
            "language": provenance["language"] or "en",
            "created_by": provenance["created_by"] or f"import:{folder.name}",
            "seed": _seed(record.get("seed")),
            "width": size[0],
            "height": size[1],
            "image": {"bytes": content, "path": PurePosixPath(name).name},
        }


def _seed(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return -1


def _safe_name(identifier: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in identifier).lstrip(".")


def _suffix(content: bytes) -> str:
    if content.startswith(b"\x89PNG"):
        return ".png"
    return ".webp" if content[8:12] == b"WEBP" else ".jpg"

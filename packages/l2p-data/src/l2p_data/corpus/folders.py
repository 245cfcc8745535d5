"""Image folders <-> corpus: for real pictures (the paper's 4K data is UltraHR-100K), and for other tools.

Read are a table of captions beside the images (`metadata.jsonl`, `.csv`, `.parquet` or `.json`, or the only
such file there is), with `file_name, text`, `image, prompt`, `file_name, short_caption, long_caption` or
`name, prompt`; or, without a table, one `.txt` beside each image. Images may lie in sub-folders, and names
may lack them and the suffix.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from PIL import Image

from l2p_data.corpus.dataset import Failure, Manifest, iterate_corpus, load_manifest, write_corpus
from l2p_data.corpus.files import folder_exists, location, make_directory, one_line, write_bytes
from l2p_data.corpus.identity import stable_id
from l2p_data.errors import DataError
from l2p_data.synthesis.images import encode_image

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""

#: layout of an export -> (column of the file, column of the text) of its table
LAYOUTS = {"hub": ("file_name", "text"), "pairs": ("image", "prompt"), "sidecar": None}
_FILE_COLUMNS = ("file_name", "image", "file", "name")
_TEXT_COLUMNS = ("text", "prompt", "caption", "long_caption", "short_caption")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_PROVENANCE = ("language", "category", "subclass", "superclass", "created_by", "source_model")


def import_folder(
    folder: str | Path,
    corpus: str | Path,
    *,
    caption: str | None = None,
    rows_per_shard: int = 256,
    on_progress: Progress | None = None,
) -> Manifest:
    """Write an image folder as a corpus. Image bytes are taken over unchanged, after they were decoded once.

    An image that is missing, damaged or far too large does not stop the import: it is listed in the
    manifest's failures.

    Args:
        folder: a local directory or an address.
        corpus: likewise.
        caption: the column with the text, where a table has several.
        rows_per_shard: at most; shards of large images are cut by their bytes.
        on_progress: called with rows done and rows in all.

    Raises:
        DataError: no captions, no usable columns, or no usable image.
    """
    folder = location(folder)
    metadata, file_column, text_column = read_metadata(folder, caption)
    failures: list[Failure] = []
    make_directory(location(corpus))
    rows = _rows(folder, metadata, file_column, text_column, failures, on_progress)
    first = next(rows, None)
    if first is None:
        cause = f": {failures[0].id}: {failures[0].error}" if failures else ""
        raise DataError(f"{folder} has no usable image{cause}")
    settings = {"imported_from": folder.name}
    rows = chain([first], rows)
    write_corpus(corpus, rows, settings=settings, rows_per_shard=rows_per_shard, failures=failures)
    return load_manifest(corpus)


def export_folder(
    corpus: str | Path,
    folder: str | Path,
    *,
    layout: str = "hub",
    metadata: str = "jsonl",
    on_progress: Progress | None = None,
) -> int:
    """Write a corpus as an image folder: the images' own bytes, and their texts with provenance.

    Args:
        corpus: corpus directory or address.
        folder: a new or empty one.
        layout: "hub" (`file_name, text`), "pairs" (`image, prompt`), "sidecar" (a `.txt` beside each image).
        metadata: "jsonl", "csv" or "parquet", for the table.
        on_progress: called with images done and images in all.

    Returns:
        The number of images.
    """
    if metadata not in _WRITERS:
        raise DataError(f"metadata format {metadata!r} is not known; use {', '.join(_WRITERS)}")
    if layout not in LAYOUTS:
        raise DataError(f"layout {layout!r} is not known; use {', '.join(LAYOUTS)}")
    total = load_manifest(corpus).rows
    folder = location(folder)
    make_directory(folder)
    # A store has no empty folders: there the new one may still not exist.
    if folder_exists(folder) and next(iter(folder.iterdir()), None) is not None:
        raise DataError(f"{folder} is not empty; export to a new or empty directory")
    columns = LAYOUTS[layout]
    rows = []
    for done, row in enumerate(iterate_corpus(corpus), start=1):
        stem = _safe_name(row["id"])
        name = f"{stem}{_suffix(row['image']['bytes'])}"
        write_bytes(folder / name, row["image"]["bytes"])
        if columns is None:
            write_bytes(folder / f"{stem}.txt", row["prompt"].encode())
        else:
            extra = {key: row[key] for key in ("id", *_PROVENANCE, "seed", "width", "height")}
            rows.append({columns[0]: name, columns[1]: row["prompt"], **extra})
        if on_progress is not None:
            on_progress(done, total)
    if columns is not None:
        write_bytes(folder / f"metadata.{metadata}", _WRITERS[metadata](rows))
    return total


def read_metadata(folder: Path, caption: str | None = None) -> tuple[pl.DataFrame, str, str]:
    """The captions of an image folder, and which columns hold file name and text."""
    if not folder_exists(folder):
        raise DataError(f"image folder {folder} does not exist")
    tables = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in _READERS}
    path = next((tables[name] for name in (f"metadata{s}" for s in _READERS) if name in tables), None)
    if path is None and len(tables) == 1:
        path = next(iter(tables.values()))
    if path is None:
        return _sidecars(folder, tables), "file_name", "text"
    try:
        frame = _READERS[path.suffix](path.read_bytes())
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error, 160)}") from error
    file_column = next((name for name in _FILE_COLUMNS if name in frame.columns), None)
    wanted = _TEXT_COLUMNS if caption is None else (caption,)
    text_column = next((name for name in wanted if name in frame.columns), None)
    if file_column is None or text_column is None:
        wants = "'file_name' and 'text', or 'image' and 'prompt'" if caption is None else repr(caption)
        raise DataError(f"{path} has columns {', '.join(frame.columns)}; wanted {wants}")
    return frame, file_column, text_column


def _sidecars(folder: Path, tables: Mapping[str, Path]) -> pl.DataFrame:
    """`file_name, text` from the `.txt` beside each image."""
    rows = []
    for path in sorted(folder.rglob("*")):
        text = path.with_suffix(".txt")
        if path.suffix.lower() in _SUFFIXES and text.is_file():
            name = path.relative_to(folder)
            rows.append({"file_name": str(name), "text": text.read_text(encoding="utf-8", errors="replace")})
    if not rows:
        several = f" (it has {', '.join(tables)})" if tables else ""
        raise DataError(
            f"{folder} has none of metadata{', metadata'.join(_READERS)}, and no .txt beside its images"
            f"{several}; one of them must say which text belongs to an image"
        )
    return pl.DataFrame(rows)


def _rows(
    folder: Path,
    metadata: pl.DataFrame,
    file_column: str,
    text_column: str,
    failures: list[Failure],
    on_progress: Progress | None,
) -> Iterator[dict[str, Any]]:
    find = _Finder(folder)
    for done, record in enumerate(metadata.iter_rows(named=True), start=1):
        name, text = record[file_column], record[text_column]
        if on_progress is not None:
            on_progress(done, metadata.height)
        try:
            if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
                raise DataError("file name or text is missing")
            content, size = _read_image(find(name))
        except (DataError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            failures.append(Failure(id=str(name), seed=-1, error=one_line(error), attempts=1))
            continue
        provenance = {key: str(record.get(key) or "") for key in _PROVENANCE}
        yield {
            "id": stable_id("import", name, text),
            "prompt": text,
            **provenance,
            "language": provenance["language"] or "en",
            "created_by": provenance["created_by"] or f"import:{folder.name}",
            "seed": _seed(record.get("seed")),
            "width": size[0],
            "height": size[1],
            "image": {"bytes": content, "path": PurePosixPath(name).name},
        }


def _read_image(path: Path) -> tuple[bytes, tuple[int, int]]:
    """An image's bytes, decoded once to prove them whole, and its size; odd formats become PNG."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        if image.format not in ("PNG", "JPEG", "WEBP"):
            content = encode_image(image.convert("RGB"))
        return content, image.size


class _Finder:
    """File names of a table -> paths. Never outside the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._below: dict[str, list[Path]] | None = None

    def __call__(self, name: str) -> Path:
        relative = PurePosixPath(name.replace("\\", "/"))
        path = self.folder / str(relative)
        inside = not relative.is_absolute() and ".." not in relative.parts and "\0" not in name
        if inside and isinstance(path, Path):  # a symbolic link may lead out as well
            inside = path.resolve().is_relative_to(self.folder.resolve())
        if not inside:
            raise DataError(f"file name {name!r} leaves the folder")
        if path.is_file():
            return path
        if self._below is None:
            self._below = {}
            for below in sorted(self.folder.rglob("*")):
                if below.suffix.lower() in _SUFFIXES:
                    for key in {below.name, below.stem}:
                        self._below.setdefault(key, []).append(below)
        found = self._below.get(relative.name, [])
        if len(found) != 1:
            raise DataError(f"{name!r} is {'missing' if not found else 'in several sub-folders'}")
        return found[0]


def _json_rows(content: bytes) -> pl.DataFrame:
    """A list of records, or {file name: record or text}."""
    rows = json.loads(content)
    if isinstance(rows, dict):
        rows = [
            {"file_name": name, **(value if isinstance(value, dict) else {"text": value})}
            for name, value in rows.items()
        ]
    return pl.DataFrame(rows)


_READERS: dict[str, Callable[[bytes], pl.DataFrame]] = {
    ".jsonl": pl.read_ndjson,
    ".csv": lambda content: pl.read_csv(content, infer_schema=False),
    ".parquet": pl.read_parquet,
    ".json": _json_rows,
}


def _write_table(rows: list[dict[str, Any]], method: str) -> bytes:
    buffer = io.BytesIO()
    getattr(pl.DataFrame(rows), method)(buffer)
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
    "csv": lambda rows: _write_table(rows, "write_csv"),
    "parquet": lambda rows: _write_table(rows, "write_parquet"),
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

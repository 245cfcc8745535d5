"""Images with texts <-> corpus: for real pictures (the paper's 4K data is UltraHR-100K), and for other tools.

Read are a table of captions beside the images (`metadata.jsonl`, `.csv`, `.parquet` or `.json`, or the only
such file there is), with `file_name, text`, `image, prompt`, `file_name, short_caption, long_caption` or
`name, prompt`; without a table, a `.txt` or `.caption` beside each image; Hugging Face's Parquet files, which
hold the images; and webdataset's tar files. Images may lie in sub-folders, and names may lack them and the
suffix.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from l2p_run.pictures.pixels import colour_of

from l2p_data.corpus.captions import Entry, Source, folder_source
from l2p_data.corpus.dataset import iterate_corpus, write_corpus
from l2p_data.corpus.files import (
    folder_exists,
    location,
    make_directory,
    raised_as,
    read_picture,
    shown,
    write_bytes,
)
from l2p_data.corpus.identity import stable_id
from l2p_data.corpus.images import encode_image
from l2p_data.corpus.manifest import Failure, Manifest, load_manifest
from l2p_data.corpus.packed import packed_source
from l2p_data.errors import DataError, checks

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""

#: layout of an export -> (column of the file, column of the text) of its table
LAYOUTS = {"hub": ("file_name", "text"), "pairs": ("image", "prompt"), "sidecar": None}
_PROVENANCE = ("language", "category", "subclass", "superclass", "created_by", "source_model")


@checks
def import_folder(
    folder: str | Path,
    corpus: str | Path,
    *,
    caption: str | None = None,
    background: str = "white",
    rows_per_shard: int = 256,
    on_progress: Progress | None = None,
) -> Manifest:
    """Write pictures with their texts as a corpus.

    A file's own bytes are kept where every decoder shows what people see in them; other pictures (lying on
    their side, transparent, of more than 8 bits, CMYK, animated, of another format) are stored as people see
    them, losslessly as PNG. The manifest's settings count them under "changed".

    A picture that is missing, damaged, far too large or without its text does not stop the import: it is
    listed in the manifest's failures.

    Args:
        folder: a local directory or an address; also a .parquet or .tar file, or a folder of such files.
        corpus: likewise.
        caption: the column with the text, where a table has several.
        background: what transparent places show, a colour's name or "#rrggbb".
        rows_per_shard: at most; shards of large images are cut by their bytes.
        on_progress: called with rows done and rows in all.

    Raises:
        DataError: no captions, no usable columns, or no usable image.
    """
    place = location(folder)
    changed: Counter[str] = Counter()
    failures: list[Failure] = []
    raised_as(DataError)(colour_of)(background)
    source = open_source(place, caption)
    make_directory(location(corpus))
    rows = _rows(place, source, background, failures, changed, on_progress)
    first = _first(rows, place, failures)
    settings: dict[str, Any] = {"imported_from": place.name}
    if background != "white":
        settings["background"] = background
    if source.left_out:
        settings["left_out"] = list(source.left_out)
    settings["changed"] = changed  # filled while the rows are read
    rows = chain([first], rows)
    write_corpus(corpus, rows, settings=settings, rows_per_shard=rows_per_shard, failures=failures)
    return load_manifest(corpus)


@checks
def check_import(folder: str | Path, *, caption: str | None = None, background: str = "white") -> Source:
    """Return what an import would read, once it has found a usable image; writes nothing.

    Raises:
        DataError: what `import_folder` would say before it writes.
    """
    raised_as(DataError)(colour_of)(background)
    place, failures = location(folder), list[Failure]()
    source = open_source(place, caption)
    _first(_rows(place, source, background, failures, Counter(), None), place, failures)
    return source


def _first(rows: Iterator[dict[str, Any]], place: Path, failures: Sequence[Failure]) -> dict[str, Any]:
    first = next(rows, None)
    if first is None:
        cause = f": {failures[0].id}: {failures[0].error}" if failures else ""
        raise DataError(f"{place} has no usable image{cause}")
    return first


def open_source(place: Path, caption: str | None = None) -> Source:
    """Return what an import would read.

    Raises:
        DataError: no captions, no usable columns, or nothing that is known.
    """
    return packed_source(place, caption) or folder_source(place, caption)


@checks
def export_folder(
    corpus: str | Path,
    folder: str | Path,
    *,
    layout: str = "hub",
    metadata: str = "jsonl",
    on_progress: Progress | None = None,
) -> int:
    """Write a corpus as an image folder: the images' own bytes, and their texts with provenance. An image
    whose bytes show something else than people see is written as PNG, as `import_folder` would store it.

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
    rows, taken = [], set[str]()
    for done, row in enumerate(iterate_corpus(corpus), start=1):
        stem = _own_stem(row["id"], taken)
        content = row["image"]["bytes"]
        picture = read_picture(content, name=f"row {row['id']}")
        if not picture.plain:
            content = encode_image(picture.image)
        row["width"], row["height"] = picture.image.size
        name = f"{stem}{_suffix(content)}"
        write_bytes(folder / name, content)
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


def _rows(
    place: Path,
    source: Source,
    background: str,
    failures: list[Failure],
    changed: "Counter[str]",
    on_progress: Progress | None,
) -> Iterator[dict[str, Any]]:
    seen: Counter[tuple[str, str]] = Counter()
    for done, entry in enumerate(source.entries(), start=1):
        if on_progress is not None:
            on_progress(done, max(done, source.total))
        problem = entry.problem
        if not problem and not (isinstance(entry.text, str) and entry.text.strip()):
            problem = "missing: file name or text is missing"
        if not problem and not _is_text(
            entry.text, entry.name, *(entry.record.get(key) for key in _PROVENANCE)
        ):
            problem = "caption: a name or text holds half of a character; save it as UTF-8"
        try:
            if problem:
                raise DataError(problem)
            content, size, name = _stored(entry, background, changed)
        except DataError as error:
            # As text that a file can hold: a name from an old archive may have bytes of another encoding.
            name = shown(entry.name).encode("utf-8", "backslashreplace").decode()
            failures.append(Failure(id=name, seed=-1, error=str(error)[:400], attempts=1))
            continue
        key = (entry.name, entry.text)
        again = (seen[key],) if seen[key] else ()  # the same picture and text twice are two rows
        seen[key] += 1
        provenance = {key: str(entry.record.get(key) or "") for key in _PROVENANCE}
        yield {
            "id": stable_id("import", entry.name, entry.text, *again),
            "prompt": entry.text,
            **provenance,
            "language": provenance["language"] or "en",
            "created_by": provenance["created_by"] or f"import:{place.name}",
            "seed": _seed(entry.record.get("seed")),
            "width": size[0],
            "height": size[1],
            "image": {"bytes": content, "path": name},
        }


def _is_text(*given: object) -> bool:
    """Return whether all can be written as UTF-8."""
    try:
        return all(str(one).encode() is not None for one in given)
    except UnicodeEncodeError:
        return False


def _stored(entry: Entry, background: str, changed: "Counter[str]") -> tuple[bytes, tuple[int, int], str]:
    """Return what becomes of a picture: its bytes, upright size and file name."""
    content = entry.content()
    name = PurePosixPath(entry.name).name
    try:
        picture = read_picture(content, background=background, name=name)
    except DataError as error:
        raise DataError(f"unreadable: {error}") from error
    if picture.plain:
        return content, picture.image.size, name
    reasons = picture.changes or (f"{picture.format} stored as PNG",)
    changed.update("the first of several frames" if "the first of" in one else one for one in reasons)
    return encode_image(picture.image), picture.image.size, f"{PurePosixPath(name).stem}.png"


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
        seed = int(str(value))
    except ValueError:
        return -1
    return seed if -(2**63) <= seed < 2**63 else -1  # the column has 64 bits; some tools' seeds have no sign


def _own_stem(identifier: str, taken: set[str]) -> str:
    """Return a file name without its suffix that no other row has, and enter it: "cat/1" is not "cat:1"."""
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in identifier).lstrip(".")
    if not stem or stem.casefold() in taken:
        stem = f"{stem}-{stable_id('export', identifier)}"
    taken.add(stem.casefold())
    return stem


def _suffix(content: bytes) -> str:
    if content.startswith(b"\x89PNG"):
        return ".png"
    return ".webp" if content[8:12] == b"WEBP" else ".jpg"

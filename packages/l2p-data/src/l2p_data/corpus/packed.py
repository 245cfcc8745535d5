"""Pictures that come packed: Hugging Face's Parquet (`image` with its bytes), and webdataset's tar files."""

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from l2p_run.pictures import SUFFIXES

from l2p_data.corpus.captions import CAPTION_SUFFIXES, TEXT_COLUMNS, Entry, Source, column_of, files_below
from l2p_data.corpus.files import decode_text, folder_exists, is_file, one_line, unreadable
from l2p_data.errors import DataError

_IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
_TARS = (".tar", ".tar.gz", ".tgz")
_MOST_BYTES = 2 << 30  # of a member of a tar; a larger one is no picture


def packed_source(place: Path, caption: str | None) -> Source | None:
    """Return the pictures of a Parquet or tar file, or of a folder of such files; None for a folder of
    another kind.

    Raises:
        DataError: the file is missing, damaged, or of another kind.
    """
    if not folder_exists(place):
        if not is_file(place):
            return None
        if place.suffix == ".parquet":
            return _parquet([place], caption, place)
        if place.name.endswith(_TARS):
            return _tar([place], caption)
        raise DataError(f"{place} is neither a folder, nor a .parquet or .tar file with images")
    files = [path for path in files_below(place) if not path.name.startswith(("_", "."))]
    tables = [path for path in files if path.suffix == ".parquet"]
    if tables and _image_column(_schema(tables[0])) is not None:
        return _parquet(tables, caption, place)
    if any(path.suffix.lower() in SUFFIXES for path in files):
        return None
    tars = [path for path in files if path.name.endswith(_TARS)]
    return _tar(tars, caption) if tars else None


# --------------------------------------------------------------------------------------------------- Parquet


def _schema(path: Path) -> pa.Schema:
    try:
        with path.open("rb") as file:
            return pq.ParquetFile(file).schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise unreadable(str(path), error) or DataError(
            f"{path} cannot be read: it is no whole Parquet file ({one_line(error, 100)}); copy it again "
            "from where it came"
        ) from error


def _image_column(schema: pa.Schema) -> str | None:
    """Return the column that holds pictures: a struct with their bytes, or the bytes themselves."""
    for name in sorted(schema.names, key=lambda one: one not in _IMAGE_COLUMNS):
        kind = schema.field(name).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return str(name)
        if name in _IMAGE_COLUMNS and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            return str(name)
    return None


def _parquet(files: list[Path], caption: str | None, place: Path) -> Source:
    training = [path for path in files if path.name.startswith("train")]
    left_out = tuple(path.name for path in files if training and path not in training)
    files = training or files
    schema = _schema(files[0])
    image = _image_column(schema)
    if image is None:
        raise DataError(
            f"{place} has columns {', '.join(schema.names)[:300]}; wanted one with images (a struct with "
            "their bytes), or a folder with file names"
        )
    text = column_of([name for name in schema.names if name != image], caption, place)
    total = 0
    for path in files:
        if missing := {image, text} - set(_schema(path).names):
            raise DataError(f"{path} has no column {sorted(missing)[0]!r}, which {files[0].name} has")
        with path.open("rb") as file:
            total += pq.ParquetFile(file).metadata.num_rows

    def entries() -> Iterator[Entry]:
        for path in files:
            yield from _rows(path, image, text)

    columns = {"file_column": f"{image}.bytes", "text_column": text}
    return Source(total=total, columns=columns, entries=entries, left_out=left_out)


def _rows(path: Path, image: str, text: str) -> Iterator[Entry]:
    number = 0
    try:
        with path.open("rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    yield _entry(row, image, text, f"{path.stem}-{number:07d}")
                    number += 1
    except (OSError, pa.ArrowException) as error:
        if found := unreadable(str(path), error):
            raise found from error
        cause = f"is damaged after row {number} ({one_line(error, 80)})"
        problem = f"unreadable: {path.name} {cause}; copy it again from where it came"
        yield Entry(name=path.name, text="", content=bytes, problem=problem)


def _entry(row: dict[str, Any], image: str, text: str, name: str) -> Entry:
    """Return a row's picture and caption; `name` is for one whose file name is not stored."""
    cell = row.pop(image)
    stored = cell if isinstance(cell, dict) else {"bytes": cell}
    words = row.get(text)
    if isinstance(words, list):  # several captions of one picture
        words = next((one for one in words if isinstance(one, str) and one.strip()), None)
    content = stored.get("bytes") or b""
    return Entry(
        name=PurePosixPath(str(stored.get("path") or "")).name or name,
        text=words,
        content=_given(content),
        record=row,
        problem="" if content else "missing: the row holds no bytes of an image",
    )


def _given(content: bytes) -> Callable[[], bytes]:
    return lambda: content


# ------------------------------------------------------------------------------------------------------- tar


def _tar(files: list[Path], caption: str | None) -> Source:
    total = sum(1 for path in files for _ in _samples(path, contents=False))

    def entries() -> Iterator[Entry]:
        for path in files:
            for key, members in _samples(path, contents=True):
                yield _sample(path, key, members, caption)

    columns = {"file_column": "a member of each sample", "text_column": caption or "txt, caption or json"}
    return Source(total=total, columns=columns, entries=entries)


def _samples(path: Path, contents: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, {suffix: bytes}) of the samples of a tar file: members that follow each other and share a
    key, the name up to the first dot. A tar that is cut off ends with a sample that says so, under
    "error"."""
    key = ""
    members: dict[str, Any] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                base, dot, suffix = name.name.partition(".")
                if not member.isfile() or not dot or not base:
                    continue
                own = str(name.with_name(base))
                if own != key and members:
                    yield key, members
                    members = {}
                key = own
                members[f".{suffix.lower()}"] = _member(archive, member) if contents else b""
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        if found := unreadable(str(path), error if isinstance(error, OSError) else ValueError()):
            raise found from error
        if members:
            yield key, members
        cause = f"is damaged or cut off after {key or 'its start'} ({one_line(error, 80)})"
        yield path.name, {"error": f"unreadable: {path.name} {cause}; copy it again from where it came"}
        return
    if members:
        yield key, members


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    if member.size > _MOST_BYTES:
        return f"unreadable: it has {member.size:,} bytes, more than a picture's"
    found = archive.extractfile(member)
    return found.read() if found is not None else b""


def _sample(path: Path, key: str, members: dict[str, Any], caption: str | None = None) -> Entry:
    if "error" in members:
        return Entry(name=key, text="", content=bytes, problem=members["error"])
    picture = next((suffix for suffix in members if f".{suffix.rpartition('.')[2]}" in SUFFIXES), None)
    record, problem, text = {}, "", None
    try:
        text = next(
            (
                decode_text(members[suffix], "its text")
                for suffix in (*CAPTION_SUFFIXES, ".text")
                if suffix in members
            ),
            None,
        )
        if ".json" in members:
            found = json.loads(decode_text(members[".json"], "its .json"))
            record = found if isinstance(found, dict) else {}
            text = text or next((record[name] for name in TEXT_COLUMNS if record.get(name)), None)
        if caption is not None:  # that one alone: another would be trained on in its place
            text = record.get(caption)
            if not isinstance(text, str) or not text.strip():
                problem = f"missing: no {caption!r} in its .json"
    except DataError as error:
        problem = f"caption: {error}"
    except (ValueError, RecursionError) as error:
        problem = f"caption: its .json cannot be read ({one_line(error, 80)})"
    if picture is None:
        problem = f"missing: no picture among its members {', '.join(members)[:100]}"
    content = members.get(picture or "", b"")
    if isinstance(content, str):
        problem, content = content, b""
    name = f"{PurePosixPath(key).name}{picture or ''}"
    return Entry(name=name, text=text, content=_given(content), record=record, problem=problem)

"""Which text belongs to which picture: a table beside the pictures, or a text file beside each of them."""

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from l2p_run.pictures import SUFFIXES

from l2p_data.corpus.files import (
    decode_text,
    folder_exists,
    is_file,
    one_line,
    parse_json,
    read_bytes,
    read_text,
    shown,
    unreadable,
)
from l2p_data.errors import DataError

FILE_COLUMNS = ("file_name", "image", "file", "name")
TEXT_COLUMNS = ("text", "prompt", "caption", "long_caption", "short_caption")
CAPTION_SUFFIXES = (".txt", ".caption")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A picture that should become a row of the corpus.

    Attributes:
        name: of its file, for the row's id and for errors.
        text: its caption; None where there is none.
        content: gives the bytes of its file.
        record: further columns: provenance, seed.
        problem: why it cannot become a row, known already.
    """

    name: str
    text: Any
    content: Callable[[], bytes]
    record: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the pictures of an import come from.

    Attributes:
        total: entries.
        columns: for people: where names and texts stand.
        entries: gives them in order.
        left_out: files that hold pictures and are not imported, for people.
    """

    total: int
    columns: Mapping[str, str]
    entries: Callable[[], Iterator[Entry]]
    left_out: tuple[str, ...] = ()


def folder_source(folder: Path, caption: str | None = None) -> Source:
    """Return the pictures of a folder with their captions.

    Args:
        caption: the column with the text, where a table has several.

    Raises:
        DataError: no folder, no captions, or no usable columns.
    """
    if not folder_exists(folder):
        raise DataError(f"image folder {folder} does not exist")
    tables = {path.name: path for path in _listed(folder) if path.suffix in _READERS}
    path = next((tables[name] for name in (f"metadata{s}" for s in _READERS) if name in tables), None)
    if path is None and len(tables) == 1:
        path = next(iter(tables.values()))
    if path is None and caption is not None:
        raise DataError(
            f"{folder} has its captions in files beside the pictures, which have no columns; leave "
            f"caption {caption!r} out, or add a table with that column"
        )
    if path is None:
        return _sidecars(folder, tables)
    return _table(folder, path, caption)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(f"folder {folder}", error) or DataError(f"{folder}: {one_line(error)}") from error


def column_of(columns: list[str], caption: str | None, where: object, names: str = "") -> str:
    """Return the column with the text.

    Args:
        names: the column with the picture, where one was found; for errors.

    Raises:
        DataError: there is none.
    """
    wanted = TEXT_COLUMNS if caption is None else (caption,)
    found = next((name for name in wanted if name in columns), None)
    if found is None:
        wants = "'file_name' and 'text', or 'image' and 'prompt'" if caption is None else repr(caption)
        raise DataError(f"{where} has columns {', '.join(columns)[:300]}; wanted {wants}")
    return found


# ---------------------------------------------------------------------------------------------------- tables


def _table(folder: Path, path: Path, caption: str | None) -> Source:
    try:
        rows = _READERS[path.suffix](read_bytes(path), path)
    except DataError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (OSError, ValueError, csv.Error, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error, 160)}") from error
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text_column = column_of(columns, caption, path)
    file_column = next((name for name in FILE_COLUMNS if name in columns), None)
    if file_column is None:
        raise DataError(f"{path} has columns {', '.join(columns)[:300]}; wanted 'file_name' and 'text'")

    def entries() -> Iterator[Entry]:
        find = _Finder(folder)
        for number, row in enumerate(rows, start=1):
            name, text = row.get(file_column), row.get(text_column)
            if isinstance(name, str) and name:
                yield Entry(name=name, text=text, content=_reader(find, name), record=row)
            else:
                problem = "missing: file name or text is missing"
                yield Entry(name=f"row {number}: {shown(name)}", text=text, content=bytes, problem=problem)

    return Source(
        total=len(rows), columns={"file_column": file_column, "text_column": text_column}, entries=entries
    )


def _json_lines(content: bytes, path: Path) -> list[dict[str, Any]]:
    lines = enumerate(decode_text(content, "it").split("\n"), start=1)
    return [_object(parse_json(line, f"line {n}"), f"line {n}") for n, line in lines if line.strip()]


def _json(content: bytes, path: Path) -> list[dict[str, Any]]:
    """Return a list of records, or {file name: record or text}."""
    rows = parse_json(decode_text(content, "it"), "it")
    if isinstance(rows, dict):
        rows = [
            {"file_name": name, **(value if isinstance(value, dict) else {"text": value})}
            for name, value in rows.items()
        ]
    if not isinstance(rows, list):
        raise DataError(f"it is {shown(rows)}; wanted a list of objects, or file names with their texts")
    return [_object(row, f"entry {number}") for number, row in enumerate(rows, start=1)]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {shown(value)}; wanted an object with file name and text")
    return value


def _csv(content: bytes, path: Path) -> list[dict[str, Any]]:
    text = decode_text(content, "it")
    return pl.read_csv(io.BytesIO(text.encode()), infer_schema=False).to_dicts()


_READERS: dict[str, Callable[[bytes, Path], list[dict[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": lambda content, path: pl.read_parquet(io.BytesIO(content)).to_dicts(),
    ".json": _json,
}


def _reader(find: Callable[[str], Path], name: str) -> Callable[[], bytes]:
    return lambda: _content(find(name))


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except DataError as error:
        raise DataError(f"unreadable: {error}") from error


class _Finder:
    """File names of a table -> paths. Never outside the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._below: dict[str, list[Path]] | None = None

    def __call__(self, name: str) -> Path:
        relative = PurePosixPath(name.replace("\\", "/"))
        path = self.folder / str(relative)
        inside = not relative.is_absolute() and ".." not in relative.parts and "\0" not in name
        if inside and not hasattr(path, "fs"):  # a symbolic link may lead out as well
            root = os.path.realpath(self.folder)
            inside = os.path.realpath(path).startswith(root.rstrip(os.sep) + os.sep)
        if not inside:
            raise DataError(f"outside: file name {shown(name)!r} leaves the folder")
        try:
            there = is_file(path)
        except DataError as error:
            raise DataError(f"unreadable: {error}") from error
        if there:
            return path
        if self._below is None:
            self._below = {}
            for below in files_below(self.folder):
                if below.suffix.lower() in SUFFIXES:
                    for key in {below.name, below.stem}:
                        self._below.setdefault(key, []).append(below)
        found = self._below.get(relative.name, [])
        if len(found) != 1:
            where = "is missing" if not found else "is in several sub-folders"
            raise DataError(f"{'missing' if not found else 'several'}: {shown(name)!r} {where}")
        return found[0]


def files_below(folder: Path) -> list[Path]:
    """Return every file of a folder, sorted; linked folders are not entered, as a link may lead round in a
    circle.

    Raises:
        DataError: a folder below cannot be listed.
    """
    if hasattr(folder, "fs"):
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def stop(error: OSError) -> None:
        raise unreadable(f"folder {error.filename}", error) or DataError(one_line(error))

    return sorted(Path(here, name) for here, _, names in os.walk(folder, onerror=stop) for name in names)


# -------------------------------------------------------------------------------------------------- sidecars


def _sidecars(folder: Path, tables: Mapping[str, Path]) -> Source:
    """Return the texts of files beside pictures: a.txt or a.caption, also a.png.txt. What is half of a pair
    is an entry with its problem, so that no picture and no caption vanishes."""
    files = files_below(folder)
    names = {str(path) for path in files}
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    captions = {path: _caption(path, names) for path in pictures}
    used = {str(path) for path in captions.values() if path is not None}
    alone = [path for path in files if path.suffix.lower() in CAPTION_SUFFIXES and str(path) not in used]
    if not used:
        several = f" (it has {', '.join(tables)})" if tables else ""
        raise DataError(
            f"{folder} has none of metadata{', metadata'.join(_READERS)}, and no .txt or .caption beside its "
            f"images{several}; one of them must say which text belongs to an image"
        )
    stems = {str(path.with_suffix("")): path for path in files if path.suffix not in CAPTION_SUFFIXES}

    def entries() -> Iterator[Entry]:
        for path, caption in captions.items():
            yield _beside(folder, path, caption)
        for path in alone:
            other = stems.get(str(path.with_suffix("")))
            problem = (
                f"unreadable: {other.name} is of no kind of picture that is known; save it as PNG or JPEG"
                if other is not None
                else "missing: there is no picture beside this text"
            )
            name = str((other or path).relative_to(folder))
            yield Entry(name=name, text="", content=bytes, problem=problem)

    columns = {"file_column": "file_name", "text_column": "text"}
    return Source(total=len(captions) + len(alone), columns=columns, entries=entries)


def _caption(picture: Path, names: set[str]) -> Path | None:
    for suffix in (*CAPTION_SUFFIXES, *(one.upper() for one in CAPTION_SUFFIXES)):
        for path in (picture.with_suffix(suffix), picture.with_name(picture.name + suffix)):
            if str(path) in names:
                return path
    return None


def _beside(folder: Path, picture: Path, caption: Path | None) -> Entry:
    name, text, problem = str(picture.relative_to(folder)), "", ""
    if caption is None:
        problem = "caption: there is no .txt or .caption beside it"
    else:
        try:
            text = read_text(caption)
        except DataError as error:
            problem = f"caption: {error}"
    return Entry(name=name, text=text, content=lambda: _content(picture), problem=problem)

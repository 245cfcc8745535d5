"""The files of the ground floor (`l2p_run.places`), with this package's exception."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_run import places
from l2p_run.errors import explained, is_environment, one_line, raised_as
from l2p_run.pictures import Picture
from l2p_run.places import TEMPORARY_SUFFIX, remove_partial

from l2p_data.errors import DataError

__all__ = [
    "TEMPORARY_SUFFIX",
    "atomic_path",
    "decode_text",
    "folder_exists",
    "is_file",
    "location",
    "make_directory",
    "one_line",
    "parse_json",
    "raised_as",
    "read_bytes",
    "read_json",
    "read_picture",
    "read_text",
    "read_toml",
    "remove_partial",
    "shown",
    "unreadable",
    "write_bytes",
    "write_json",
]
_ours = raised_as(DataError)
folder_exists = _ours(places.is_folder)
is_file = _ours(places.is_file)
make_directory = _ours(places.make_folder)
read_bytes = _ours(places.read_bytes)
read_json = _ours(places.read_json)
parse_json = _ours(places.parse_json)
write_bytes = _ours(places.write_bytes)
write_json = _ours(places.write_json)
_MARKS = {  # the longer mark first: that of UTF-16 is the beginning of that of UTF-32
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def location(path: str | Path) -> Path:
    """Return a local path, or a place on any fsspec filesystem; see `l2p_run.places.location`."""
    try:
        return places.location(path)
    except ValueError as error:
        raise DataError(str(error).replace("l2p-run[", "l2p-data[")) from error


def has_shards(corpus: str | Path) -> bool:
    """Return whether a corpus, here or at an address, has its first shard."""
    folder = location(corpus)
    return folder_exists(folder) and next(iter(folder.glob("*.parquet")), None) is not None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a local name to write to; it becomes `path` if the block succeeds, and nothing if not.

    Raises:
        DataError: it cannot be written.
    """
    with raised_as(DataError), places.atomic_path(path) as temporary:
        yield temporary


def read_text(path: Path) -> str:
    """Return a file's text; raises as `decode_text`, or if it cannot be read."""
    return decode_text(read_bytes(path), path)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return the tables of a TOML file; `what` is what errors call it.

    Raises:
        DataError: it is missing, cannot be read, is no TOML, or nested too deeply.
    """
    if not is_file(path):
        raise DataError(f"{what} {path} does not exist")
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise DataError(f"{what} {path} is nested too deeply to be read") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{what} {path} is not readable TOML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise DataError(f"{what} {path} is not readable TOML: {one_line(error)}") from error


def decode_text(content: bytes, where: object) -> str:
    """Return text in UTF-8, or in what its byte-order mark says, without the mark.

    Nothing is guessed: other bytes would become other words, and be trained on.

    Args:
        where: what errors call it.

    Raises:
        DataError: it is none.
    """
    coding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(coding)
    except UnicodeDecodeError as error:
        byte = content[error.start : error.start + 1].hex()
        raise DataError(
            f"{where} is no text in {coding.removesuffix('-sig').upper()}: byte {error.start:,} is 0x{byte}; "
            "save it as UTF-8, for example by iconv -f WINDOWS-1252 -t UTF-8 (or -f GBK)"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_picture(source: Path | bytes, *, background: str = "white", name: str = "") -> Picture:
    """Return a picture as people see it; see `l2p_run.pictures.read_picture`."""
    from l2p_run import pictures

    try:
        return pictures.read_picture(source, background=background, name=name)
    except ValueError as error:
        raise DataError(str(error).replace("l2p-run[", "l2p-data[")) from error


def unreadable(what: str, error: Exception) -> DataError | None:
    """Return the error for a file that could not be read but may be whole: permission, device, network; None
    where what was read is damaged.

    Args:
        what: "shard PATH".
    """
    if isinstance(error, OSError) and (error.errno is not None or is_environment(error)):
        return DataError(explained(f"cannot read {what}, which may be whole", error))
    return None


def shown(value: Any, limit: int = 120) -> str:
    """Return a value from a file, for people: never a whole picture."""
    if isinstance(value, dict | list | bytes):
        return f"a {type(value).__name__} of {len(value)}"
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"

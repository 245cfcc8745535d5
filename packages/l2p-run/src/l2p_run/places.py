"""Files at a place, on this machine or in an object store: what is there, read and written whole.

A place is a `Path`: a local one, or one of universal-pathlib for an address ("s3://...", "gs://...",
"memory://..."), which `location` makes from text.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from l2p_run.errors import UserError, explained, one_line
from l2p_run.storage.addresses import BUCKETS, REACH, Place, check_path, is_address, location
from l2p_run.storage.atomic import TEMPORARY_SUFFIX, atomic_folder, atomic_path, get, put, remove_partial

__all__ = [
    "BUCKETS",
    "REACH",
    "TEMPORARY_SUFFIX",
    "Place",
    "atomic_folder",
    "atomic_path",
    "check_path",
    "get",
    "is_address",
    "is_file",
    "is_folder",
    "location",
    "make_folder",
    "parse_json",
    "put",
    "read_bytes",
    "read_json",
    "read_json_if_whole",
    "read_jsonl",
    "read_text",
    "remove_partial",
    "shorten",
    "write_bytes",
    "write_json",
    "write_jsonl",
    "write_text",
]


def is_file(path: Path) -> bool:
    """Return whether `path` is a file. As `Path.is_file`, but what cannot be answered is an error and not
    False.

    Raises:
        UserError: too long a name, a folder that may not be looked into, a store that does not answer.
    """
    return _asked(path, "is_file")


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder; raises as `is_file`."""
    return _asked(path, "is_dir")


def _asked(path: Path, question: str) -> bool:
    try:
        if isinstance(path, Path) and not hasattr(path, "fs"):
            check_path(path)
            try:
                os.stat(path)  # Path.is_file takes every error for "no" on some versions of Python
            except (FileNotFoundError, NotADirectoryError):
                return False
        return bool(getattr(path, question)())
    except UserError:
        raise
    except OSError as error:
        raise UserError(explained(f"cannot look at {path}", error, REACH)) from error
    except Exception as error:  # the clients of the stores have exceptions of their own
        raise UserError(f"cannot read {path}: {one_line(error)}; {REACH}") from error


# ------------------------------------------------------------------------------------------------- writing


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 whole or not at all."""
    write_bytes(path, text.encode("utf-8", "surrogatepass"))


def write_json(path: Path, content: Any, **options: Any) -> None:
    """Write `content` as readable JSON, whole or not at all.

    Args:
        options: of `json.dumps`, for example `default=str`.
    """
    options = {"indent": 1, "ensure_ascii": False, **options}
    write_text(path, json.dumps(content, **options) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def make_folder(path: Path, remedy: str = "choose a writable one") -> None:
    """Create a folder and prove that it can be written.

    Raises:
        UserError: it is a file, or cannot be created or written.
    """
    probe = path / f".probe.{os.urandom(6).hex()}"
    if hasattr(path, "fs"):
        write_bytes(probe, b"")
        probe.unlink()
        return
    try:
        check_path(path).mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(explained(f"cannot write to the folder {path}", error, remedy)) from error


# ------------------------------------------------------------------------------------------------- reading


def read_bytes(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        UserError: it is missing, or cannot be read; permissions, devices and damage are told apart.
    """
    try:
        return check_path(path).read_bytes()
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(explained(f"cannot read {path}", error)) from error
    except Exception as error:
        if not hasattr(path, "fs"):
            raise
        raise UserError(f"cannot read {path}: {one_line(error)}; {REACH}") from error


def read_text(path: Path) -> str:
    """Return a file's text in UTF-8, without a byte-order mark; line ends become "\\n".

    Raises:
        UserError: as `read_bytes`, or it is no text in UTF-8.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 (byte {error.start} is {content[error.start]:#04x}); save it so"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; raises as `read_text`, or if it is no JSON."""
    return parse_json(read_text(path), path)


def parse_json(text: str, where: object) -> Any:
    """Return the value of JSON text.

    Args:
        where: what errors call it.

    Raises:
        UserError: it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read; no file of this kind is") from None
    except ValueError as error:
        raise UserError(f"{where} is not readable JSON: {one_line(error)}") from error


def read_json_if_whole(path: Path) -> dict[str, Any] | None:
    """Return the object of a JSON file that this project wrote itself; None where there is none, and where
    what lies there is damaged or no object, so that what it noted is made again.

    Raises:
        UserError: it is there and may be whole, but cannot be read (permissions, a broken device).
    """
    try:
        if not is_file(path):
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        return None
    except OSError as error:
        raise UserError(explained(f"cannot read {path}", error)) from error
    return found if isinstance(found, dict) else None


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) of every line of a JSON-lines file that is not blank.

    Raises:
        UserError: as `read_text`; a line that is no JSON is named.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path}:{number}")


def shorten(path: Path) -> Path:
    """Return a path for people: relative to the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

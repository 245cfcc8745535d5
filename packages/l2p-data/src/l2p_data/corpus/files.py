"""Files that are whole or absent, on this machine or in an object store.

Local files are written to a temporary name, flushed and renamed; other filesystems (fsspec: "s3://...", "gs://...",
"memory://...") get the whole file in one upload, which object stores show only when it is complete.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from l2p_data.errors import DataError

TEMPORARY_SUFFIX = ".partial"
_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # stores that have keys and no folders


def location(path: str | Path) -> Path:
    """A local path, or a place on any fsspec filesystem, with the methods of `pathlib`.

    Pass addresses as text: `Path("s3://bucket/x")` has lost a slash.

    Raises:
        DataError: the filesystem is not known, or the package that speaks to it is missing.
    """
    scheme, separator, _ = str(path).partition("://")
    if not separator:
        return Path(path)
    from upath import UPath

    try:
        # Another process, a Ray worker say, may write what this one has listed before.
        place = UPath(path, use_listings_cache=False)
        _ = place.fs
    except (ImportError, ValueError) as error:
        extra = f"; install l2p-data[{scheme}]" if scheme in ("s3", "gs") else ""
        raise DataError(f"cannot use {path}: {one_line(error)}{extra}") from error
    return Path(place.path) if place.protocol in ("file", "local") else cast(Path, place)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a local name to write to; it becomes `path` if the block succeeds, and nothing if not.

    Raises:
        DataError: the folder cannot be written.
    """
    if not isinstance(path, Path):
        with _upload(path) as temporary:
            yield temporary
        return
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; choose a writable folder"
        ) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


@contextmanager
def _upload(path: Any) -> Iterator[Path]:
    """A local file that is uploaded to `path`, a UPath, at the end."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        yield temporary
        try:
            _make_folders(path.parent)
            path.fs.put_file(str(temporary), path.path)
        except Exception as error:  # the clients of the stores have exceptions of their own
            raise DataError(f"cannot write {path}: {one_line(error)}; choose a writable place") from error


def _make_folders(path: Any) -> None:
    """Create the folders of a UPath. A bucket is never created: its name may be a slip of the pen."""
    if path.protocol not in _BUCKETS:
        path.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON, atomically."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it is missing, unreadable or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not readable JSON: {one_line(error)}") from error


def make_directory(path: Path) -> None:
    """Create `path` and prove that it can be written.

    Raises:
        DataError: it is a file, or cannot be created or written.
    """
    probe = path / f".probe.{os.getpid()}"
    if not isinstance(path, Path):
        write_bytes(probe, b"")
        probe.unlink()
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"cannot write to the directory {path}: {error.strerror or error}; choose a writable one"
        ) from error


def folder_exists(path: Path) -> bool:
    """Whether `path` is a directory.

    Raises:
        DataError: its store does not answer, or not to this user.
    """
    try:
        return path.is_dir()
    except Exception as error:  # as in `_upload`
        raise DataError(
            f"cannot read {path}: {one_line(error)}; check the address, the connection and the credentials"
        ) from error


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as one line: its type and message, whitespace collapsed, cut at `limit` characters."""
    text = " ".join(str(error).split())
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"

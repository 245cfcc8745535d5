"""Files and folders that appear whole or not at all, and copies to and from stores.

Local files are written to a temporary name, flushed and renamed; other filesystems get the whole file in one
upload, which object stores show only when it is complete.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_run.errors import UserError, explained, one_line
from l2p_run.storage.addresses import BUCKETS, REACH, check_path

TEMPORARY_SUFFIX = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a local name to write to; it becomes `path` if the block succeeds, and nothing if not.

    Raises:
        UserError: it cannot be written, with the cause and what helps against it.
    """
    if hasattr(path, "fs"):
        with _upload(path) as temporary:
            yield temporary
        return
    refuse_device(path)
    # A name of its own: two processes may write the same file, and the later one wins whole.
    temporary = check_path(path).with_name(f".{path.name[:200]}.{os.urandom(6).hex()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(_failed(error, path, temporary)) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def refuse_device(path: Path) -> None:
    """Raise where a file of ours would take the place of a device, a pipe or a socket: whoever writes to
    /dev/null as root would else take it from the whole machine.

    Raises:
        UserError: something is there, and it is neither a file nor a folder.
    """
    try:
        kind = os.stat(check_path(path)).st_mode
    except OSError:  # nothing there, or nothing that can be looked at: writing says why
        return
    in_devices = path.absolute().parent.resolve().is_relative_to("/dev") and path.is_symlink()
    if in_devices or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UserError(f"{path} is a device or a pipe, and would be replaced; give the name of a file")


def _failed(error: OSError, path: Path, temporary: Path) -> str:
    """Return one line for an error while `path` was written, which may be one of reading something else."""
    other = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else temporary
    ours = {temporary, path, *path.parents}
    if other in ours or temporary in other.parents or error.filename2 is not None:
        return explained(f"cannot write {path}", error, "choose a writable folder")
    return explained(f"cannot write {path}, because {other} cannot be read", error)


@contextmanager
def _upload(path: Any) -> Iterator[Path]:
    """Yield a local file that is uploaded to `path`, a UPath, at the end."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        yield temporary
        put(temporary, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty local folder to fill; it takes the place of `path` if the block succeeds.

    Raises:
        UserError: it cannot be written.
    """
    temporary = check_path(path).with_name(f".{path.name[:200]}.{os.urandom(6).hex()}{TEMPORARY_SUFFIX}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            before = temporary.with_name(f"{temporary.name}.old")
            path.rename(before)
            temporary.rename(path)
            shutil.rmtree(before, ignore_errors=True)
            return
        temporary.rename(path)
    except OSError as error:
        raise UserError(_failed(error, path, temporary)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put(local: Path, place: Path) -> None:
    """Copy a local file to a place, where it appears whole.

    Raises:
        UserError: the place cannot be written.
    """
    if not hasattr(place, "fs"):
        with atomic_path(place) as temporary:
            shutil.copyfile(local, temporary)
        return
    remote: Any = place
    try:
        if remote.protocol not in BUCKETS:
            remote.parent.mkdir(parents=True, exist_ok=True)
        remote.fs.put_file(str(local), remote.path)
    except Exception as error:  # the clients of the stores have exceptions of their own
        raise UserError(f"cannot write {place}: {one_line(error)}; {REACH}") from error


def get(place: Path, local: Path) -> None:
    """Copy a file from a place to this machine, where it appears whole.

    Raises:
        UserError: the place cannot be read.
    """
    with atomic_path(local) as temporary:
        if not hasattr(place, "fs"):
            shutil.copyfile(place, temporary)
            return
        remote: Any = place
        try:
            remote.fs.get_file(remote.path, str(temporary))
        except Exception as error:
            raise UserError(f"cannot read {place}: {one_line(error)}; {REACH}") from error


def remove_partial(folder: Path, patterns: Iterable[str] = ("",)) -> None:
    """Remove temporary files that a killed process left; for whoever is at work in the folder, alone.

    Args:
        patterns: folders below it, as globs ending in "/" ("ledger/"), and "" for the folder itself.
    """
    for pattern in patterns:
        for path in folder.glob(f"{pattern}.*{TEMPORARY_SUFFIX}"):
            if hasattr(path, "fs") or not path.is_dir():
                path.unlink(missing_ok=True)
            else:
                shutil.rmtree(path, ignore_errors=True)

"""What makes a folder safe to use again: one process at a time, and the settings that filled it."""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_run.errors import UserError, explained
from l2p_run.places import check_path, is_file, read_json_if_whole, write_json

NOTE = "settings.json"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def lock(path: Path, *, busy: str, remedy: str = "choose a writable folder") -> Iterator[None]:
    """Hold a lock file, which processes and threads exclude each other by; it is free again when the process
    ends, however it ends.

    Args:
        path: of the lock file; it stays, empty, where the file system has locks.
        busy: the error where another holds it.

    Raises:
        UserError: another holds it, or it cannot be written.
    """
    with try_lock(path, remedy=remedy) as mine:
        if not mine:
            raise UserError(f"{busy}{_marked_by(path)}")
        yield


def _marked_by(path: Path) -> str:
    """Return who holds a lock on a file system without locks, where a file that says so must do; ""
    elsewhere.
    """
    try:
        process, machine, *_ = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):  # empty, as under a real lock
        return ""
    return f" (process {process} of {machine} holds {path}; if that machine is no more, remove the file)"


@contextmanager
def try_lock(path: Path, *, wait: bool = False, remedy: str = "choose a writable folder") -> Iterator[bool]:
    """As `lock`; yields whether it could be had, which with `wait` it always can, sooner or later.

    Where a file system knows no locks (some network ones), the file itself is the lock, with its holder's
    process and machine in it: one of a dead process of this machine is taken over, one of another machine
    never, because nobody here can tell whether that one lives.
    """
    from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

    held: BaseFileLock = FileLock(check_path(path))
    patience = -1 if wait else 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():  # of what is said below, where it matters
                warnings.simplefilter("ignore")
                held.acquire(timeout=patience)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if path.stat().st_size == 0:  # left by the attempt
                path.unlink()
            held = SoftFileLock(path)
            held.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise UserError(explained(f"cannot write to {path.parent}", error, remedy)) from error
    try:
        yield True
    finally:
        held.release()


def lock_holder(path: Path) -> int | None:
    """Return the process of this machine that holds a lock file; None where nobody does, or another
    machine's.

    Linux alone tells; elsewhere, and on file systems that number their files anew, it is None as well.
    """
    try:
        state = path.stat()
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}"
    for fields in map(str.split, lines):  # "1: FLOCK ADVISORY WRITE 1234 fe:00:56789 0 EOF"
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == f"{device}:{state.st_ino}":
            return int(fields[4]) if fields[4].isdecimal() and int(fields[4]) else None
    return None


def claim(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    note: str = NOTE,
    holds: str = "results",
    remedy: str = "choose another folder",
    ignored: Iterable[str] = (".lock",),
    replace: bool = False,
    accepts: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] | None = None,
) -> None:
    """Note in `folder` what it is filled with, or check that it is filled with just that.

    Args:
        settings: JSON values that decide the content.
        note: name of the file that they are noted in.
        holds: what the folder holds, in words, for errors.
        remedy: what to do about a folder of other settings.
        ignored: names that do not make a folder another's.
        replace: empty a folder of other settings instead of refusing it.
        accepts: takes the old and the new settings; True where they mean the same though they differ, such as
            those that an earlier version noted with fewer keys.

    Raises:
        UserError: the folder is filled with something else, holds other files, or cannot be written.
    """
    wanted = json.loads(json.dumps(settings))
    path = folder / note
    if is_file(path):
        known = read_json_if_whole(path)
        if known is None and not replace:
            raise UserError(f"{path} is damaged, so that nobody knows what {folder} holds; {remedy}")
        if known == wanted:
            return
        if known is not None and accepts is not None and accepts(known, wanted):
            write_json(path, wanted)
            return
        if not replace:
            shown = "; ".join(differences(known or {}, wanted))
            raise UserError(f"{folder} holds {holds} of other settings ({shown}); {remedy}")
        shutil.rmtree(folder)
    elif foreign := _others(folder, {note, *ignored}):
        raise UserError(f"{folder} holds other files ({foreign}); {remedy}")
    write_json(path, wanted)


def _others(folder: Path, ignored: set[str]) -> str:
    """Return the first name in a folder that is not ignored, "" where there is none."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(explained(f"cannot list {folder}", error)) from error
    return next((name for name in names if name not in ignored and not name.endswith(".partial")), "")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "key: old -> new" for every key whose values differ, those of tables inside as "table.key"."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {shown(before)} -> {shown(after)}")
    return found


def shown(value: Any) -> str:
    """Return a setting for people."""
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)

"""Hashes that identify files, folders and settings by their content, the same on any machine.

Large files are hashed whole, and once: what was found is kept by path, size and times of change in the
user's cache (`L2P_CACHE`, by default ~/.cache/l2p), because reading 20 GB again would take minutes.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from l2p_run.errors import UserError, explained

OF_A_MODEL = {".json", ".safetensors", ".txt", ".model", ".jinja"}
"""Suffixes of the files that decide how a model computes."""
_WORTH_KEEPING = 1 << 20  # bytes; a smaller file is hashed quicker than it is looked up
_TOO_FRESH = 2.0  # s; a file changed so lately may change again within the clock's tick


def of_settings(value: Any, length: int = 64) -> str:
    """Return the first hexadecimal digits of the sha256 of JSON values, in whatever order their keys
    stand.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def of_bytes(content: bytes) -> str:
    """Return hexadecimal sha256."""
    return hashlib.sha256(content).hexdigest()


def of_file(path: Path) -> str:
    """Return hexadecimal sha256 of all bytes of a file; of a large one that has not changed since, from the
    cache.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        if hasattr(path, "fs"):
            with path.open("rb") as remote:
                return hashlib.file_digest(remote, "sha256").hexdigest()
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            if before.st_size < _WORTH_KEEPING:
                return hashlib.file_digest(file, "sha256").hexdigest()
            note, state = _note(path), _state(before)
            if (known := _read(note, state)) is not None:
                return known
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if _state(os.fstat(file.fileno())) == state and time.time() - before.st_mtime > _TOO_FRESH:
                _keep(note, state, found)
            return found
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(explained(f"cannot read {path}", error)) from error


def of_folder(folder: Path, wanted: Callable[[Path], bool] | None = None) -> str:
    """Return hexadecimal sha256 over names and contents of a folder's files, hidden ones left out.

    Where the folder lies does not enter, so a copy is the same.

    Args:
        wanted: takes a path relative to the folder; False leaves the file out.

    Raises:
        UserError: a file cannot be read.
    """
    return of_files(folder, [path for path in files_of(folder) if wanted is None or wanted(path)])


def of_model(folder: Path) -> str:
    """As `of_folder`, of what decides how a model computes: configs, weights and vocabularies."""
    return of_folder(folder, lambda name: name.suffix in OF_A_MODEL)


def written(path: Path) -> float:
    """Return when a file, or the youngest of `of_model`'s files in a folder, was written, in s since 1970.

    0 where there is none.

    Raises:
        UserError: a folder cannot be listed.
    """
    if path.is_dir():
        names = [name for name in files_of(path) if name.suffix in OF_A_MODEL]
        return max(((path / name).stat().st_mtime for name in names), default=0.0)
    return path.stat().st_mtime if path.is_file() else 0.0


def of_files(folder: Path, names: Iterable[Path]) -> str:
    """As `of_folder`, of the named files below it."""
    found = [[name.as_posix(), of_file(folder / name)] for name in sorted(names, key=Path.as_posix)]
    return of_settings(found)


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder and of those below it, relative to it and in order, hidden ones left out.

    Raises:
        UserError: a folder cannot be listed, or its links lead round in a circle.
    """

    def refuse(error: OSError) -> None:
        raise UserError(explained(f"cannot list {error.filename or folder}", error)) from error

    found, seen = [], set()
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name).relative_to(folder) for name in files if not name.startswith(".")]
    return sorted(found, key=Path.as_posix)


# ------------------------------------------------------------------------------------------------ the cache


def cache_folder() -> Path:
    """Return where results are kept that can be made again: `L2P_CACHE`, else the user's cache folder."""
    if given := os.environ.get("L2P_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "l2p"


def _note(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return cache_folder() / "sha256" / f"{name}.json"


def _state(state: os.stat_result) -> list[int]:
    # The time of change beside the time of modification: the latter can be set by whoever copies.
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_dev, state.st_ino]


def _read(note: Path, state: list[int]) -> str | None:
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        return str(known["sha256"]) if known["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(note: Path, state: list[int], found: str) -> None:
    from l2p_run.places import write_json

    with suppress(UserError, OSError):  # a machine without a home: it is only hashed again
        write_json(note, {"state": state, "sha256": found})

"""Model directories on disk: they appear complete or not at all, and share no file with their source."""

import errno
import itertools
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError


@contextmanager
def appearing_file(out: Path, sources: Sequence[Path], overwrite: bool) -> Iterator[Path]:
    """Give a file name to write; it takes the name `out` on success and vanishes on any failure.

    Args:
        out: what to create.
        sources: files and directories that are read meanwhile: none of their files is replaced.
        overwrite: replace an existing file.
    """
    out = Path(os.path.abspath(out))
    if out.is_dir():
        raise ArchError(f"{out} is a directory; give the name of a file")
    if out.exists() and not out.is_file():
        raise ArchError(f"{out} is a device or a pipe, and would be replaced; give the name of a file")
    if out.resolve() in _what_is_read(sources):
        raise ArchError(f"{out} is part of what is read; choose another name for the result")
    _refuse_existing(out, overwrite)
    partial = _staging(out, "partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(out)
        partial.touch()
    except OSError as error:
        raise ArchError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        with _failures_named(out):
            yield partial
            _take_the_name(partial, out, overwrite)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def appearing_complete(out: Path, sources: Sequence[Path], overwrite: bool) -> Iterator[Path]:
    """Give a directory to fill; it takes the name `out` on success and vanishes on any failure.

    Args:
        out: what to create.
        sources: files and directories that are read meanwhile: `out` may neither hold nor lie in them.
        overwrite: replace an existing directory.
    """
    out = Path(os.path.abspath(out))
    _refuse_near(out, sources)
    if out.is_symlink() or out.is_file() or os.path.ismount(out):
        raise ArchError(f"{out} is no directory of its own; choose another name for the result")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(out)
        _refuse_existing(out, overwrite)
        partial = _staging(out, "partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise ArchError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        with _failures_named(out):
            yield partial
        if overwrite and out.exists():
            replaced = _staging(out, "replaced")
            out.rename(replaced)
            try:
                partial.rename(out)
            except BaseException:
                replaced.rename(out)
                raise
            shutil.rmtree(replaced.rename(_staging(out, "partial")), ignore_errors=True)
        else:
            _refuse_existing(out, overwrite)  # it may have come meanwhile
            try:
                partial.rename(out)
            except OSError:
                _refuse_existing(out, overwrite)  # or just now
                raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise ArchError(
            f"{out} already exists; choose another name, or overwrite it (overwrite=True, --overwrite)"
        )


def _take_the_name(partial: Path, out: Path, overwrite: bool) -> None:
    """Rename a file, but never over one that came meanwhile unless that is asked for."""
    if overwrite:
        partial.replace(out)
        return
    try:
        os.link(partial, out)  # fails where there is one, which a renaming would not
    except OSError:
        _refuse_existing(out, overwrite)
        partial.replace(out)  # a file system without links
    else:
        partial.unlink()


def _refuse_near(out: Path, sources: Sequence[Path]) -> None:
    for source in sources:
        # Anywhere in it: a folder that comes into a model changes what the model is known by.
        parts = [*_folders_read(source), source] if source.is_dir() else []
        for part in parts:
            if part.resolve() in (out.resolve(), *out.resolve().parents):
                raise ArchError(
                    f"{out} lies in {part}, which is read; choose a place outside of it for the result"
                )
        for path in _what_is_read([source]):
            if out.resolve() == path or out.resolve() in path.parents:
                raise ArchError(f"{out} holds the source {source}; choose another directory for the result")


def _what_is_read(sources: Sequence[Path]) -> set[Path]:
    """Return the files of model directories, as they are named and where links lead to."""
    named = [*sources]
    for source in sources:
        named += [source / name for name in ("model_index.json", "README.md", "LICENSE", "LICENSE.md")]
        named += [path for folder in _folders_read(source) for path in (folder, *folder.glob("*"))]
    return {path for each in named for path in (Path(os.path.abspath(each)), each.resolve())}


def _folders_read(source: Path) -> list[Path]:
    """Return the folders of a pipeline's components; none of a single file."""
    try:
        index = read_json(source / "model_index.json", "")
    except ArchError:
        index = {}
    return [source / name for name in {*index, "transformer"} if (source / name).is_dir()]


@contextmanager
def _failures_named(out: Path) -> Iterator[None]:
    """Yield what the system refuses to read or write, as one line."""
    try:
        yield
    except OSError as error:
        if not error.strerror:  # raised by a library, and not by the system
            raise
        full = "free some, or choose another place"
        remedies = {
            errno.ENOSPC: full,
            errno.EDQUOT: full,
            errno.EFBIG: "raise the limit (ulimit -f), or write smaller shards",
        }
        remedy = remedies.get(error.errno or 0, "mend that, and run it again")
        path = str(error.filename or out)
        verb = "write" if path == str(out) or f".{out.name}.partial-" in path else "read"
        shown = out if verb == "write" else path
        raise ArchError(
            f"cannot {verb} {shown}: {error.strerror}; {remedy}. Nothing is left of {out}"
        ) from error


_staged = itertools.count()


def _staging(out: Path, kind: str) -> Path:
    """Return where this process keeps what will become `out`, or what `out` was; another place at every
    call.
    """
    number = next(_staged)
    return out.parent / f".{out.name}.{kind}-{platform.node()}-{os.getpid()}{f'.{number}' if number else ''}"


def _remove_left_behind(out: Path) -> None:
    """Remove what killed processes of this host left unfinished of `out`; what they were replacing, and had
    not yet replaced, becomes `out` again.

    What belongs to a living process stays, and so does that of another host, which may share the disk.
    """
    for path in _left_behind(out, "replaced"):
        if not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)
    for path in _left_behind(out, "partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _left_behind(out: Path, kind: str) -> list[Path]:
    """Return what dead processes of this host staged for `out`."""
    name = re.compile(re.escape(f".{out.name}.{kind}-{platform.node()}-") + r"(?P<process>\d+)(\.\d+)?")
    found = ((path, name.fullmatch(path.name)) for path in out.parent.iterdir())
    return [path for path, match in found if match and not _is_alive(int(match["process"]))]


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def read_json(path: Path, complaint: str) -> dict[str, Any]:
    """Return a JSON object from a file; the ArchError otherwise starts with the complaint."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArchError(f"{complaint}: there is no {path}") from error
    except (ValueError, RecursionError) as error:
        raise ArchError(f"{complaint}: {path} is not valid JSON") from error
    except OSError as error:
        raise ArchError(f"{complaint}: {path}: {error.strerror}") from error
    if not isinstance(value, dict):
        raise ArchError(f"{complaint}: {path} is not a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

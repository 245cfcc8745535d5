"""Model directories on disk: they appear complete or not at all, and share no file with their source."""

import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError
from l2p_arch.tensor_files import VARIANT_FILE
from l2p_arch.tensor_writing import copy_range

_LICENCES = ("LICENSE", "LICENSE.md")


@contextmanager
def appearing_file(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give a file name to write; it takes the name `out` on success and vanishes on any failure."""
    if out.is_dir():
        raise ArchError(f"{out} is a directory; give the name of a file")
    if out.exists() and not overwrite:
        raise ArchError(f"{out} already exists; choose another name or allow it to be overwritten")
    partial = _staging(out, "partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(out)
        partial.touch()
    except OSError as error:
        raise ArchError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        with _full_disk_named(out):
            yield partial
        partial.replace(out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def appearing_complete(out: Path, sources: Sequence[Path], overwrite: bool) -> Iterator[Path]:
    """Give a directory to fill; it takes the name `out` on success and vanishes on any failure."""
    for source in sources:
        if source.resolve() == out.resolve() or out.resolve() in source.resolve().parents:
            raise ArchError(f"{out} holds the source {source}; choose another directory for the result")
    if out.is_symlink() or out.is_file():
        raise ArchError(f"{out} is no directory of its own; choose another name for the result")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(out)
        if out.exists() and not overwrite:
            raise ArchError(f"{out} already exists; choose another directory or allow it to be overwritten")
        partial = _staging(out, "partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise ArchError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        with _full_disk_named(out):
            yield partial
        if out.exists():
            replaced = _staging(out, "replaced")
            out.rename(replaced)
            try:
                partial.rename(out)
            except BaseException:
                replaced.rename(out)
                raise
            shutil.rmtree(replaced)
        else:
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _full_disk_named(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free some, or choose another place",
            errno.EDQUOT: "free some, or choose another place",
            errno.EFBIG: "raise the limit (ulimit -f), choose another file system, or smaller shards",
        }.get(error.errno or 0)
        if remedy is None:
            raise
        raise ArchError(f"cannot write {out}: {error.strerror}; {remedy}. Nothing is left of it") from error


def _staging(out: Path, kind: str) -> Path:
    """Where this process keeps what will become `out`, or what `out` was."""
    return out.parent / f".{out.name}.{kind}-{platform.node()}-{os.getpid()}"


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
    """What dead processes of this host staged for `out`."""
    start = _staging(out, kind).name.removesuffix(str(os.getpid()))
    owners = {path: path.name.removeprefix(start) for path in out.parent.iterdir()}
    return [
        path
        for path, owner in owners.items()
        if owner != path.name and owner.isdecimal() and not _is_alive(int(owner))
    ]


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


def copy_components(source: Path, names: Sequence[str], out: Path) -> None:
    """Take components of a pipeline along (text encoders, scheduler), and write the index of an
    L2PPipeline."""
    source_index = read_json(source / "model_index.json", f"{source} is no diffusers pipeline directory")
    for name in names:
        for folder, _, files in os.walk(source / name, followlinks=True):
            copied = out / Path(folder).relative_to(source)
            copied.mkdir(parents=True)
            for file in files:  # not shutil.copytree, whose error does not say that the disk is full
                plain = _plain_name(file)
                if plain == file or plain in files:
                    copy_file(Path(folder) / file, copied / file)
                elif plain.endswith(".json"):
                    _write_plain_index(Path(folder) / file, copied / plain)
                else:
                    copy_file(Path(folder) / file, copied / plain)
    for name in _LICENCES:
        if (source / name).is_file():
            copy_file(source / name, out / name)
    index: dict[str, Any] = {"_class_name": "L2PPipeline", "transformer": ["l2p_arch", "L2PTransformer"]}
    if "_diffusers_version" in source_index:
        index["_diffusers_version"] = source_index["_diffusers_version"]
    write_json(out / "model_index.json", index | {name: source_index[name] for name in names})


def _plain_name(file: str) -> str:
    """The name of weights or their index without the variant that they were saved with, which whoever loads
    the result would have to know."""
    match = VARIANT_FILE.fullmatch(file)
    if match is None:
        return file
    if match["index"]:
        return f"{match['index']}.json"
    return f"{match['stem']}{match['shard'] or ''}{match['suffix']}"


def _write_plain_index(source: Path, target: Path) -> None:
    index = read_json(source, f"{source.parent} is damaged")
    names = index.get("weight_map")
    if not isinstance(names, dict):
        raise ArchError(f"{source} is no index of shards: it holds no weight_map")
    write_json(target, index | {"weight_map": {key: _plain_name(name) for key, name in names.items()}})


def components_to_keep(source: Path, text_components: Sequence[str], family: str) -> list[str]:
    """The scheduler and those text components that the pipeline has; some sources are saved without their
    largest."""
    index = read_json(source / "model_index.json", f"{source} is no diffusers pipeline directory")
    left_out = {name for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}
    names = [name for name in (*text_components, "scheduler") if name not in left_out]
    missing = [name for name in names if name not in index or not (source / name).is_dir()]
    if missing:
        raise ArchError(f"{source} lacks {', '.join(missing)}, which a {family} pipeline needs")
    return names


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy; never a hard link, through which a later save into the target would write into the source's own
    file."""
    with Path(source).open("rb") as reader, Path(target).open("wb") as writer:
        copy_range(reader, 0, os.fstat(reader.fileno()).st_size, writer)


def read_json(path: Path, complaint: str) -> dict[str, Any]:
    """A JSON object from a file; the ArchError otherwise starts with the complaint."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArchError(f"{complaint}: there is no {path}") from error
    except ValueError as error:
        raise ArchError(f"{complaint}: {path} is not valid JSON") from error
    except OSError as error:
        raise ArchError(f"{complaint}: {path}: {error.strerror}") from error
    if not isinstance(value, dict):
        raise ArchError(f"{complaint}: {path} is not a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

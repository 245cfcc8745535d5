"""The manifest of a corpus: which shards it has, so that none is missed, read twice, or another.

l2p-data writes it last (`_manifest.json`; `manifest.json` in earlier versions). A folder of Parquet files of
another origin has none, and is read as it is.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_run import hashes
from l2p_run.errors import raised_as

from l2p_train.errors import TrainError

_NAMES = ("_manifest.json", "manifest.json")
_LEDGERS = (".ledger/", "ledger/")
_FORMAT = "l2p-corpus/1"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListedShard:
    """What the manifest says of a shard."""

    file: str
    rows: int
    bytes: int
    sha256: str


def listed_shards(
    sizes: Mapping[str, int], read: Callable[[str], bytes | None], where: str
) -> list[ListedShard] | None:
    """Return the shards of a corpus in their order; None where a folder of Parquet files has no manifest.

    Args:
        sizes: of every file in the corpus's folder, by its name relative to it.
        read: gives a file's content.
        where: the corpus, for errors.

    Raises:
        TrainError: the corpus is unfinished, or its files are not those that the manifest lists.
    """
    name = next((name for name in _NAMES if name in sizes), None)
    if name is None:
        if any(file.startswith(_LEDGERS) for file in sizes):
            raise TrainError(
                f"the corpus in {where} is unfinished: there is no {_NAMES[0]}; run the synthesis to its end"
            )
        logger.warning(
            "%s has no %s: its Parquet files are taken as they are; nothing tells whether some are missing",
            where,
            _NAMES[0],
        )
        return None
    shards = _parsed(read(name) or b"", f"{where}/{name}")
    if twice := [file for file, count in Counter(shard.file for shard in shards).items() if count > 1]:
        raise TrainError(f"{where}/{name} lists the shard {twice[0]} twice; restore it from a copy")
    for shard in shards:
        if shard.file not in sizes:
            raise TrainError(
                f"the corpus in {where} lacks the shard {shard.file} that {name} lists; restore it from a "
                "copy, or run the synthesis again, which makes it anew"
            )
        if sizes[shard.file] != shard.bytes:
            raise TrainError(
                f"the shard {where}/{shard.file} has {sizes[shard.file]:,} bytes, {name} says "
                f"{shard.bytes:,}: it was changed or exchanged; restore it from a copy"
            )
    parquet = {file for file in sizes if file.endswith(".parquet") and "/" not in file}
    if stray := sorted(parquet - {shard.file for shard in shards}):
        raise TrainError(
            f"{where}/{stray[0]} is not in {name}: its rows may stand twice; move it out of the folder"
        )
    return shards


def _parsed(content: bytes, where: str) -> list[ListedShard]:
    try:
        found = json.loads(content)
        if found["format"] != _FORMAT:
            raise TrainError(f"{where} is of the format {found['format']!r}; this version reads {_FORMAT!r}")
        shards = [ListedShard(**entry) for entry in found["shards"]]
        whole = all(type(one.rows) is type(one.bytes) is int and isinstance(one.file, str) for one in shards)
    except TrainError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainError(f"{where} is damaged ({type(error).__name__}); restore it from a copy") from error
    if not whole:
        raise TrainError(f"{where} is damaged: a shard's numbers are none; restore it from a copy")
    return shards


def check_contents(directory: Path) -> None:
    """Compare every byte of a local corpus with its manifest; what has not changed since the last time is not
    read again (`l2p_run.hashes`).

    Raises:
        TrainError: a shard is another than the one that was written: rows in another order, say.
    """
    sizes = local_sizes(directory)
    shards = listed_shards(sizes, lambda name: (directory / name).read_bytes(), str(directory))

    def check(shard: ListedShard) -> None:
        found = raised_as(TrainError)(hashes.of_file)(directory / shard.file)
        if found != shard.sha256:
            raise TrainError(
                f"the shard {directory / shard.file} is another than the manifest says (sha256): rows "
                "or captions were changed or exchanged; restore it from a copy, or write the corpus anew"
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, shards or ()))


def local_sizes(directory: Path) -> dict[str, int]:
    """Return the sizes of a directory's files, and of a ledger's in it, by relative name.

    Raises:
        TrainError: it cannot be looked into.
    """
    try:
        files = [*directory.iterdir(), *(path for name in _LEDGERS for path in (directory / name).glob("*"))]
        return {
            path.relative_to(directory).as_posix(): path.stat().st_size for path in files if path.is_file()
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TrainError(f"cannot look into the corpus {directory}: {error.strerror}") from error


def check_rows(counts: Mapping[str, int], shards: list[ListedShard] | None, where: str) -> None:
    """Raise `TrainError` for a shard with other rows than the manifest says; `counts` is by file name."""
    for shard in shards or ():
        if counts[shard.file] != shard.rows:
            raise TrainError(
                f"the shard {where}/{shard.file} has {counts[shard.file]} rows, the manifest says "
                f"{shard.rows}; restore it from a copy"
            )


def check_ids(ids: list[tuple[str, Any]]) -> None:
    """Raise `TrainError` for an id that stands twice; each comes with the shard that it is in."""
    seen: dict[str, Any] = {}
    for id_, shard in ids:
        if id_ in seen:
            raise TrainError(
                f"the corpus holds the row {id_} twice, in {seen[id_]} and {shard}; a copy of a shard would "
                "train twice: move it out of the folder"
            )
        seen[id_] = shard

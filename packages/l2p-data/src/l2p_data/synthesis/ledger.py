"""What is done, on disk: one small JSON file per finished shard. Ray knows nothing that is not here too.

The folder is `.ledger`, which readers of data folders leave out; `ledger`, its name in earlier versions,
moves there when a corpus goes on.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2p_data.corpus.dataset import shard_name
from l2p_data.corpus.files import (
    folder_exists,
    is_file,
    one_line,
    read_bytes,
    read_json,
    remove_partial,
    unreadable,
    write_bytes,
    write_json,
)
from l2p_data.corpus.identity import earlier_fingerprint, unread_since
from l2p_data.corpus.manifest import Failure, Shard, read_entry
from l2p_data.errors import DataError

LEDGER, EARLIER_LEDGER = ".ledger", "ledger"


def ledger_path(corpus: Path, index: int) -> Path:
    """Return where a finished shard's row count, hash and failures are noted: its existence marks the shard
    as done."""
    return corpus / LEDGER / f"part-{index:05d}.json"


def attempts_path(corpus: Path, index: int) -> Path:
    """Return where it is noted how often a shard was begun in this run; gone when the shard is done."""
    return corpus / LEDGER / f"part-{index:05d}.attempts"


def begun_attempts(corpus: Path, index: int) -> int:
    """Return how often a shard was begun in this run; a damaged note counts for nothing."""
    path = attempts_path(corpus, index)
    try:
        return int(path.read_text()) if path.is_file() else 0
    except ValueError:
        return 0


def finished_shards(corpus: Path, count: int) -> dict[int, dict[str, Any]]:
    """Return ledger entries of the shards that are done, by index. A damaged entry counts as none: the shard
    is made again, to the same bytes.

    Raises:
        DataError: a finished shard's file is not what its ledger entry says, or cannot be looked at.
    """
    entries = {}
    for index in range(count):
        path = ledger_path(corpus, index)
        file = corpus / shard_name(index)
        if not is_file(path) or not is_file(file):
            continue
        entry = _entry(path)
        if entry is None:
            continue
        try:
            size = file.stat().st_size
        except OSError as error:
            raise unreadable(f"shard {file}", error) or DataError(f"{file}: {one_line(error)}") from error
        if size != entry["file"]["bytes"]:
            raise DataError(
                f"shard {file} has {size} bytes, {entry['file']['bytes']} were written: it is truncated or "
                "was changed; restore it from a copy, or move it out of the folder and run the synthesis "
                "again, which makes it anew"
            )
        entries[index] = entry
    return entries


def _entry(path: Path) -> dict[str, Any] | None:
    """Return a ledger entry; None if it is damaged."""
    content = read_bytes(path)  # what cannot be read may be whole, and is an error
    try:
        entry = json.loads(content)
        read_entry(Shard, entry["file"], "file")
        for failure in entry["failures"]:
            read_entry(Failure, failure, "failures")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return dict(entry)


_CHECKED = "source_checked"
"""Key of the noted settings: the fingerprint of all bytes of a source that an earlier version named by its
earlier one."""


def claim(corpus: Path, settings: Mapping[str, Any], model: Path) -> dict[str, Any]:
    """Note the settings in the corpus directory, or check that they are the ones it was begun with.

    Args:
        model: the directory that `source_model` names.

    Returns:
        The settings that count: those that are noted.

    Raises:
        DataError: they differ, or the directory holds something else.
    """
    begun = _begun(corpus)
    _move_earlier_ledger(corpus)
    path = corpus / LEDGER / "settings.json"
    now: dict[str, Any] = json.loads(json.dumps(settings))
    if is_file(path):
        before = read_json(path)
        if not isinstance(before, dict):
            raise DataError(
                f"{path} is no table of settings; restore it from a copy, or choose another directory"
            )
        checked = before.pop(_CHECKED, None)
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if "source_model" in changed and _is_same_source(before, now, checked, model, begun):
            changed.remove("source_model")
            if checked is None and not changed:  # from now on every byte of it counts
                write_json(path, {**before, _CHECKED: now["source_model"]})
            now["source_model"] = before["source_model"]
        if changed:
            raise DataError(_other_settings(corpus, before, now, changed))
    elif _is_painted(corpus):
        raise DataError(f"{corpus} holds Parquet files of another origin; choose another directory")
    else:
        write_json(path, settings)
    return now


def _is_same_source(
    before: Mapping[str, Any], now: Mapping[str, Any], checked: Any, model: Path, begun: float
) -> bool:
    """Return whether a corpus of an earlier version, which named its source by parts of its files, has this
    source.

    Raises:
        DataError: those parts are the same, but a file was written since, and nobody knows what it was.
    """
    if checked is not None:
        return bool(checked == now["source_model"])
    name = str(now["source_model"]).partition("@")[0]
    noted = str(before.get("source_model", ""))
    if noted.partition("@")[0] != name or noted != f"{name}@{earlier_fingerprint(model)}":
        return False
    if newer := unread_since(model, begun):
        raise DataError(
            f"{newer} was written after this corpus was begun, by an earlier version that did not read all "
            "of it; if the source is the same as then, say so by touch -d '1 January 2020' "
            f"{newer}, else choose another directory"
        )
    return True


def _begun(corpus: Path) -> float:
    """Return when the settings of a corpus were noted, in s since 1970; infinity where that is not known."""
    times = []
    for name in (EARLIER_LEDGER, LEDGER):
        try:
            times.append(float((corpus / name / "settings.json").stat().st_mtime))
        except Exception:  # not there, or a store that keeps no times
            continue
    return min(times, default=math.inf)


def _other_settings(
    corpus: Path, before: Mapping[str, Any], now: Mapping[str, Any], changed: list[str]
) -> str:
    differences = "; ".join(f"{key}: was {before.get(key)}, now {now.get(key)}" for key in changed)
    names = [str(one.get("source_model", "")).partition("@")[0] for one in (before, now)]
    if changed == ["source_model"] and names[0] == names[1]:
        return (
            f"the source model {names[0]} has changed since the corpus {corpus} was begun ({differences}); "
            "put its files back, or choose another directory"
        )
    remedy = "" if _is_painted(corpus) else ", or delete this one if nobody is at work in it"
    return f"{corpus} was begun with other settings ({differences}); choose another directory{remedy}"


def _move_earlier_ledger(corpus: Path) -> None:
    """Move it file by file, so that a kill in between loses nothing."""
    earlier = corpus / EARLIER_LEDGER
    if not folder_exists(earlier) or not is_file(earlier / "settings.json"):
        return
    # The settings go last: they are what says that there is more to move.
    for path in sorted(earlier.glob("*.json"), key=lambda one: one.name == "settings.json"):
        if not is_file(corpus / LEDGER / path.name):
            write_bytes(corpus / LEDGER / path.name, read_bytes(path))
        path.unlink(missing_ok=True)
    for path in earlier.glob("*.attempts"):
        path.unlink(missing_ok=True)
    if isinstance(earlier, Path) and not hasattr(earlier, "fs") and not any(earlier.iterdir()):
        earlier.rmdir()


def release(corpus: Path) -> None:
    """Forget the settings if they have made no shard, so that what was wrong with them can be put right; for
    whoever is at work in the directory, alone."""
    if not _is_painted(corpus):
        for name in (LEDGER, EARLIER_LEDGER):
            (corpus / name / "settings.json").unlink(missing_ok=True)


def _is_painted(corpus: Path) -> bool:
    return next(corpus.glob("*.parquet"), None) is not None


def remove_partial_files(corpus: Path) -> None:
    """Remove what a crash left behind."""
    remove_partial(corpus, ("", f"{LEDGER}/"))
    for path in corpus.glob(f"{LEDGER}/*.attempts"):
        path.unlink(missing_ok=True)

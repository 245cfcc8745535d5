"""What is done, on disk: one small JSON file per finished shard. Ray knows nothing that is not here too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2p_data.corpus.dataset import shard_name
from l2p_data.corpus.files import TEMPORARY_SUFFIX, read_json, write_json
from l2p_data.errors import DataError


def ledger_path(corpus: Path, index: int) -> Path:
    """Where a finished shard's row count, hash and failures are noted: its existence marks the shard as
    done."""
    return corpus / "ledger" / f"part-{index:05d}.json"


def attempts_path(corpus: Path, index: int) -> Path:
    """Where it is noted how often a shard was begun in this run; gone when the shard is done."""
    return corpus / "ledger" / f"part-{index:05d}.attempts"


def finished_shards(corpus: Path, count: int) -> dict[int, dict[str, Any]]:
    """Ledger entries of the shards that are done, by index.

    Raises:
        DataError: a finished shard's file is not what its ledger entry says.
    """
    entries = {}
    for index in range(count):
        path = ledger_path(corpus, index)
        file = corpus / shard_name(index)
        if not path.is_file() or not file.is_file():
            continue
        entry = read_json(path)
        if file.stat().st_size != entry["file"]["bytes"]:
            raise DataError(
                f"shard {file} has {file.stat().st_size} bytes, {entry['file']['bytes']} were written: "
                "it is truncated or was changed; delete it and run the synthesis again"
            )
        entries[index] = entry
    return entries


def claim(corpus: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings in the corpus directory, or check that they are the ones it was begun with.

    Raises:
        DataError: they are not, or the directory holds something else.
    """
    path = corpus / "ledger" / "settings.json"
    if path.is_file():
        before = read_json(path)
        now = json.loads(json.dumps(settings))
        if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
            differences = "; ".join(f"{key}: was {before.get(key)}, now {now.get(key)}" for key in changed)
            raise DataError(
                f"{corpus} was begun with other settings ({differences}); choose another directory"
                + ("" if _is_painted(corpus) else ", or delete this one if nobody is at work in it")
            )
    elif _is_painted(corpus):
        raise DataError(f"{corpus} holds Parquet files of another origin; choose another directory")
    else:
        write_json(path, settings)


def release(corpus: Path) -> None:
    """Forget the settings if they have made no shard, so that what was wrong with them can be put right; for
    whoever is at work in the directory, alone."""
    if not _is_painted(corpus):
        (corpus / "ledger" / "settings.json").unlink(missing_ok=True)


def _is_painted(corpus: Path) -> bool:
    return next(corpus.glob("*.parquet"), None) is not None


def remove_partial_files(corpus: Path) -> None:
    """Remove what a crash left behind."""
    for pattern in (f".*{TEMPORARY_SUFFIX}", f"ledger/.*{TEMPORARY_SUFFIX}", "ledger/*.attempts"):
        for path in corpus.glob(pattern):
            path.unlink(missing_ok=True)

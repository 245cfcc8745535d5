"""Runs the stages: skips what is done, goes on with what is not, refuses a changed config, keeps two runs
apart.
"""

import fcntl
import hashlib
import json
import signal
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2p_train.config import changeable

from l2p_transfer.config import Config, default_tables
from l2p_transfer.display import Display
from l2p_transfer.errors import TransferError
from l2p_transfer.memory import MemoryMeter
from l2p_transfer.paths import RunPaths, read_json, write_json, write_text
from l2p_transfer.provenance import collect_provenance
from l2p_transfer.stages import STAGES, Run, Stage
from l2p_transfer.storage import RunStorage

MAY_CHANGE = ("evaluate", "report")  # tables that --update may change in a run directory
OF_THE_CORPUS = ("prompts", "filter", "source", "images")  # tables that it may change until one is painted
IRRELEVANT = (
    ("run", "output"),
    ("source", "repository"),
    ("images", "workers"),
    ("images", "cpu_offload"),
    ("evaluate", "workers"),
    ("evaluate", "cpu_offload"),
    ("cluster", "address"),
    ("cluster", "cpus_per_process"),
    ("cluster", "max_failures"),
    ("cluster", "llm_resources"),
    ("cluster", "synthesis_resources"),
    ("cluster", "training_resources"),
    ("cluster", "evaluation_resources"),
    ("train", "corpus_cache"),
    ("train", "corpus_cache_gb"),
)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a finished command reports."""

    root: Path
    stages: Mapping[str, Mapping[str, Any]]  # name -> marker
    executed: Sequence[str]  # stages that ran now

    def to_row(self) -> dict[str, Any]:
        """For --json."""
        return {
            "run": str(self.root),
            "report": str(RunPaths(self.root).report),
            "model": str(RunPaths(self.root).model),
            "executed": list(self.executed),
            "stages": dict(self.stages),
        }


def execute(config: Config, display: Display, *, command: Sequence[str], update: bool = False) -> RunSummary:
    """Runs every stage that is not done.

    Args:
        command: the command line, for provenance.json.
        update: allow changes of what nothing that is done depends on; the stages they touch run again.

    Raises:
        TransferError: the directory belongs to another config or another running process, or cannot be
        written.
    """
    paths = RunPaths(config.run.output)
    with _locked(paths):
        storage = RunStorage(config, paths)
        storage.fetch([stage.name for stage in STAGES])
        _claim(config, paths, update)
        write_json(paths.provenance, collect_provenance(config, command))
        run = Run(config=config, paths=paths)
        executed = []
        for number, (stage, identity) in enumerate(identities(config), start=1):
            marker = read_json(paths.marker(stage.name)) or {}
            if marker.get("state") == "done" and marker.get("identity") == identity:
                display.skip(number, len(STAGES), stage.title, marker["note"])
                continue
            display.start(number, len(STAGES), stage.title)
            marker = _execute_stage(stage, identity, run, display, marker)
            storage.keep(stage.name)
            display.finish(marker["note"], marker["seconds"])
            executed.append(stage.name)
        markers = {stage.name: read_json(paths.marker(stage.name)) for stage in STAGES}
        return RunSummary(root=paths.root, stages=markers, executed=executed)


# Keys that came later, with what runs of before did: at these values they change no identity.
LATER = {("surgery", "recipe"): "paper", ("surgery", "decoder"): "auto"}


def identities(config: Config) -> Iterator[tuple[Stage, str]]:
    """Each stage with a hash of all settings that its output depends on, those of earlier stages included."""
    tables = config.to_tables()
    for table, key in IRRELEVANT:
        tables[table].pop(key, None)
    for (table, key), before in LATER.items():
        if tables[table].get(key) == before:
            del tables[table][key]
    state = hashlib.sha256()
    for stage in STAGES:
        for table in stage.tables:
            state.update(json.dumps([table, tables[table]], sort_keys=True).encode())
        yield stage, state.hexdigest()[:16]


def _execute_stage(
    stage: Stage, identity: str, run: Run, display: Display, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Runs one stage and writes its marker; an interrupted one keeps its time and memory for the next
    attempt.
    """
    _rearm_signals()
    goes_on = before.get("identity") == identity or (stage.name == "training" and _steps_done(run.paths))
    resumed = before if goes_on else {}
    started = time.perf_counter()
    marker: dict[str, Any] = {"stage": stage.name, "identity": identity, "state": "unfinished"}
    meter = MemoryMeter()
    try:
        with meter:
            outcome = stage.execute(run, display.progress)
        marker |= {"state": "done", "note": outcome.note, "values": dict(outcome.values)}
    finally:
        marker |= {
            # To a tenth of a millisecond: the first stages of a small run take a few.
            "seconds": round(time.perf_counter() - started + resumed.get("seconds", 0.0), 4),
            "peak_bytes": max(meter.peak_bytes, resumed.get("peak_bytes", 0)),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(run.paths.marker(stage.name), marker)
        write_ledgers(run.paths)
    return marker


def _rearm_signals() -> None:
    """Gives SIGTERM back to Python: Ray, once started, takes it over below Python's handlers."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def write_ledgers(paths: RunPaths) -> None:
    """timings.json and metrics.jsonl, from the markers."""
    markers = [marker for stage in STAGES if (marker := read_json(paths.marker(stage.name)))]
    keys = ("stage", "state", "seconds", "peak_bytes", "ended")
    write_json(paths.timings, [{key: marker[key] for key in keys} for marker in markers])
    lines = [json.dumps({k: marker.get(k) for k in ("stage", "note", "values")}) for marker in markers]
    write_text(paths.metrics, "\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------- the run directory


@contextmanager
def _locked(paths: RunPaths) -> Iterator[None]:
    """Holds the run directory; it is free again when the process ends, however it ends."""
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        file = paths.lock.open("a")
    except OSError as error:
        raise TransferError(
            f"cannot write to the run directory {paths.root}: {error.strerror}; choose another run.output"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TransferError(
                f"another l2p-transfer is working in {paths.root}; wait for it, or choose another run.output"
            ) from None
        yield


def _claim(config: Config, paths: RunPaths, update: bool) -> None:
    """Writes config.toml, or checks that the directory is this config's."""
    import tomli_w

    tables = config.to_tables()
    if paths.config.is_file():
        _refuse_changes(_known(paths), config, paths, update)
    elif foreign := sorted(path.name for path in paths.root.iterdir() if path.name != paths.lock.name):
        raise TransferError(
            f"{paths.root} is not empty ({foreign[0]}) and holds no run; choose another run.output"
        )
    write_text(paths.config, tomli_w.dumps(tables))


def _known(paths: RunPaths) -> dict[str, Any]:
    """The config that made the run directory."""
    try:
        return tomllib.loads(paths.config.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TransferError(f"{paths.config} is damaged ({error}); choose another run.output") from None


def check_unchanged(config: Config, update: bool) -> None:
    """Raises what `execute` would raise for a run directory that another config made; writes nothing."""
    paths = RunPaths(config.run.output)
    if paths.config.is_file():
        _refuse_changes(_known(paths), config, paths, update)


def _refuse_changes(old: Mapping[str, Any], config: Config, paths: RunPaths, update: bool) -> None:
    new = config.to_tables()
    changes = list(differences(old, new))
    fixed = [text for table, key, text in changes if not _may_change(table, key, config, paths)]
    if fixed:
        raise TransferError(
            f"{paths.root} was made with another config: {'; '.join(fixed)}."
            " Restore it, or choose another run.output"
        )
    if changes and not update:
        shown = "; ".join(text for _, _, text in changes)
        raise TransferError(
            f"{paths.root} was made with another config: {shown}. Restore it, choose another run.output,"
            " or add --update to redo what depends on it"
        )
    if (steps := new["train"].get("steps", 0)) < (done := _steps_done(paths)):
        raise TransferError(
            f"train.steps is {steps}, and {paths.root} has {done} steps already; choose another run.output"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(table, key, "table.key: old -> new") for every setting that differs and matters.

    A setting that one side lacks has its default there: the config of a run that an earlier version began
    knows fewer of them.
    """
    defaults = default_tables()
    for table in new:
        before, after = old.get(table, {}), new[table]
        for key in sorted({*before, *after}):
            values = [side.get(key, defaults[table].get(key)) for side in (before, after)]
            if values[0] != values[1] and (table, key) not in IRRELEVANT:
                shown = ["nothing" if value is None else json.dumps(value) for value in values]
                yield table, key, f"{table}.{key}: {shown[0]} -> {shown[1]}"


def _may_change(table: str, key: str, config: Config, paths: RunPaths) -> bool:
    """Whether --update takes a change: nothing that took long and is there may depend on it.

    Prompts are soon written again, and an LLM's answers are kept. Surgery leaves all or nothing, and the
    training nothing before its first checkpoint, so that what it ran out of memory with can be changed.
    """
    if table in OF_THE_CORPUS:
        return not _painted(config, paths)
    if table == "surgery":
        return (read_json(paths.marker("surgery")) or {}).get("state") != "done"
    if table == "train":
        return key in changeable() or not _steps_done(paths)
    return table in MAY_CHANGE


def _painted(config: Config, paths: RunPaths) -> bool:
    """Whether the corpus has its first shard, here or at the run's address."""
    from l2p_data.corpus.files import folder_exists, location

    if (read_json(paths.marker("images")) or {}).get("state") == "done":
        return True
    corpus = location(config.train.corpus)
    return folder_exists(corpus) and next(iter(corpus.glob("*.parquet")), None) is not None


def _steps_done(paths: RunPaths) -> int:
    """Steps of the newest checkpoint, 0 where there is none."""
    folders = (paths.root / "train" / "checkpoints").glob("step-*")
    return max((int(folder.name.removeprefix("step-")) for folder in folders), default=0)

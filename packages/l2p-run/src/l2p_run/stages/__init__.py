"""Stages that run one after the other in a folder: what is done is skipped, what is not goes on.

A stage is a function from what it may use to its outcome, safe to run again. Its marker `stages/NAME.json`
says that it is done, and with which identity: a hash of all that its output depends on. A marker that is
damaged counts as none, and the stage is made again.
"""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from l2p_run.places import read_json_if_whole, write_json, write_jsonl
from l2p_run.progress import Display, Progress
from l2p_run.provenance import now
from l2p_run.usage import MemoryMeter

Use = TypeVar("Use")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage left: one line for people, numbers for the report."""

    note: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[Use]):
    """One step of a run.

    Attributes:
        tables: names of the settings that it reads; a change in them, or in an earlier stage, makes it run
            again.
        execute: does the work; what it may use is the run's own business.
    """

    name: str
    title: str
    execute: Callable[[Use, Progress], Outcome]
    tables: tuple[str, ...] = ()


def marker_path(folder: Path, name: str) -> Path:
    """Return the ledger of a stage: its state, time, memory and numbers."""
    return folder / "stages" / f"{name}.json"


def read_marker(folder: Path, name: str) -> dict[str, Any]:
    """Return what a stage left in its marker; empty where it never ran, or where the marker is damaged."""
    path = marker_path(folder, name)
    if path.is_dir():
        return {}
    found = read_json_if_whole(path) or {}
    whole = (
        isinstance(found.get("note", ""), str)
        and isinstance(found.get("values", {}), dict)
        and all(_is_number(found.get(key, 0)) for key in ("seconds", "peak_bytes"))
        and isinstance(found.get("ended", ""), str)
    )
    if not whole or (found.get("state") == "done" and not {"note", "seconds", "peak_bytes"} <= found.keys()):
        return {}
    return found


def is_done(folder: Path, name: str, identities: Iterable[str]) -> bool:
    """Return whether a stage is done with one of these identities."""
    marker = read_marker(folder, name)
    return marker.get("state") == "done" and marker.get("identity") in set(identities)


def identities(
    stages: Iterable[Stage[Use]],
    tables: Mapping[str, Any],
    read: Callable[[str], Mapping[str, Any]] = lambda stage: {},
) -> Iterator[tuple[Stage[Use], tuple[str, str]]]:
    """Yield each stage with its identities: a hash of all settings that its output depends on and of the
    content of all that it reads, earlier stages included; and the one of settings alone.

    Args:
        tables: of the settings, as JSON values, without what does not matter.
        read: takes a stage's name and says what it reads beside settings and earlier stages, by content.
    """
    content, settings = hashlib.sha256(), hashlib.sha256()
    for stage in stages:
        for table in stage.tables:
            row = json.dumps([table, tables[table]], sort_keys=True).encode()
            content.update(row)
            settings.update(row)
        if found := read(stage.name):
            content.update(json.dumps([stage.name, found], sort_keys=True).encode())
        yield stage, (content.hexdigest()[:16], settings.hexdigest()[:16])


def run_stages(
    stages: Sequence[tuple[Stage[Use], Sequence[str]]],
    folder: Path,
    use: Use,
    display: Display,
    *,
    goes_on: Callable[[str], bool] = lambda name: False,
    intact: Callable[[str], bool] = lambda name: True,
    after: Callable[[str], None] = lambda name: None,
) -> list[str]:
    """Run every stage that is not done; the names of those that ran.

    Args:
        stages: each with the identities that its marker may have: the present one first, then those that
            earlier versions noted for the same settings.
        goes_on: says of a stage whose identity differs that it continues all the same what it left, so that
            its time and memory add up.
        intact: says of a stage that is done whether what it left is still whole; else it runs again.
        after: called when a stage is done and its marker is written.
    """
    executed = []
    for number, (stage, known) in enumerate(stages, start=1):
        marker = read_marker(folder, stage.name)
        if marker.get("state") == "done" and marker.get("identity") in known and intact(stage.name):
            if marker["identity"] != known[0]:  # noted by an earlier version
                write_json(marker_path(folder, stage.name), marker | {"identity": known[0]})
            display.skip(number, len(stages), stage.title, marker["note"])
            continue
        display.start(number, len(stages), stage.title)
        before = marker if marker.get("identity") in known or goes_on(stage.name) else {}
        marker = _execute(stage, known[0], folder, use, display, before, [one.name for one, _ in stages])
        after(stage.name)
        display.finish(marker["note"], marker["seconds"])
        executed.append(stage.name)
    return executed


def _execute(
    stage: Stage[Use],
    identity: str,
    folder: Path,
    use: Use,
    display: Display,
    before: Mapping[str, Any],
    names: Sequence[str],
) -> dict[str, Any]:
    """Run one stage and write its marker; an interrupted one keeps its time and memory for the next
    attempt."""
    _rearm_signals()
    started = time.perf_counter()
    marker: dict[str, Any] = {"stage": stage.name, "identity": identity, "state": "unfinished"}
    meter = MemoryMeter()
    try:
        with meter:
            outcome = stage.execute(use, display.progress)
        marker |= {"state": "done", "note": outcome.note, "values": dict(outcome.values)}
    finally:
        marker |= {
            # To a tenth of a millisecond: the first stages of a small run take a few.
            "seconds": round(time.perf_counter() - started + before.get("seconds", 0.0), 4),
            "peak_bytes": max(meter.peak_bytes, before.get("peak_bytes", 0)),
            "ended": now(),
        }
        write_json(marker_path(folder, stage.name), marker)
        write_ledgers(folder, names)
    return marker


def write_ledgers(folder: Path, names: Sequence[str]) -> None:
    """Write timings.json (time and peak memory per stage) and metrics.jsonl (one line per stage), from the
    markers."""
    markers = [marker for name in names if (marker := read_marker(folder, name))]
    keys = ("stage", "state", "seconds", "peak_bytes", "ended")
    write_json(folder / "timings.json", [{key: marker.get(key) for key in keys} for marker in markers])
    rows = [{key: marker.get(key) for key in ("stage", "note", "values")} for marker in markers]
    write_jsonl(folder / "metrics.jsonl", rows)


def _rearm_signals() -> None:
    """Give SIGTERM back to Python: Ray, once started, takes it over below Python's handlers."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

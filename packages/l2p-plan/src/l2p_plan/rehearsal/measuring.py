"""Measure the stages of a run while it runs: time, rate and the memory of the machine's GPUs."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from l2p_run.places import read_json_if_whole, write_json
from l2p_run.progress import Display
from l2p_run.usage import DeviceMeter


class Recorder:
    """A display that also notes what each stage took; its notes are kept in a file.

    Attributes:
        notes: by title of the stage: "seconds", "device_bytes", and "rate" in items a second; and whatever
            `note` was given.
    """

    def __init__(self, display: Display, path: Path, meter: DeviceMeter) -> None:
        """Go on with the notes in the file `path`, if there are any."""
        self.display, self.path, self.meter = display, path, meter
        self.notes: dict[str, Any] = read_json_if_whole(path) or {}
        self._title, self._marks = "", list[tuple[float, float, float, str]]()

    def start(self, number: int, total: int, title: str) -> None:
        self.meter.take()
        self._title, self._marks = title, []
        self.display.start(number, total, title)

    def progress(self, done: float, total: float, note: str = "") -> None:
        self._marks.append((time.perf_counter(), done, total, note))
        self.display.progress(done, total, note)

    def finish(self, note: str, seconds: float) -> None:
        self.note(self._title, seconds=seconds, device_bytes=self.meter.take(), rate=rate(self._marks))
        self.display.finish(note, seconds)

    def skip(self, number: int, total: int, title: str, note: str) -> None:
        self.display.skip(number, total, title, note)

    def close(self) -> None:
        self.display.close()

    def note(self, what: str, **values: Any) -> None:
        """Keep what was measured of a stage."""
        self.notes[what] = self.notes.get(what, {}) | values
        write_json(self.path, self.notes)


def rate(marks: Sequence[tuple[float, float, float, str]]) -> float | None:
    """Return items a second of the second half, when all is loaded; None where that cannot be told.

    Args:
        marks: (moment in seconds, done, total, note) of each progress.
    """
    if not marks or not marks[-1][2]:
        return None
    end, done, total, _ = marks[-1]
    half = [(moment, count) for moment, count, _, _ in marks if count >= total / 2]
    if not half:
        return None
    seconds, items = end - half[0][0], done - half[0][1]
    return items / seconds if items > 0 and seconds > 0 else None


def step_seconds(metrics: Path) -> float | None:
    """Return seconds of a training step after the first, which compiles and allocates: the median; None
    without.

    Args:
        metrics: the trainer's metrics.jsonl.
    """
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if record.get("event") == "step"]
    later = [record["seconds_per_step"] for record in steps[1:] if "seconds_per_step" in record]
    return median(later) if later else None


def size_of(*folders: Path) -> int:
    """Return the bytes of the files of folders; one that stands in several, by hard links, takes its room
    once.
    """
    states = (one.lstat() for folder in folders for one in folder.rglob("*") if one.is_file())
    return sum({(state.st_dev, state.st_ino): state.st_size for state in states}.values())

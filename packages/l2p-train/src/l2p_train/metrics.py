"""What a run reports: `metrics.jsonl` (one line per interval), TensorBoard, and an event function."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Event = Mapping[str, Any]
SIGMA_BINS = 4  # eq. 5's loss is also reported per quarter of the sigma axis, image end first


def peak_memory_mb() -> float:
    """Return this process's peak memory in MiB: the device's on a GPU, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Reporter:
    """Writes the reports of process 0; in other processes it does nothing."""

    def __init__(
        self,
        output: Path,
        *,
        active: bool,
        first_step: int,
        tensorboard: bool,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.on_event = on_event
        self._file: Any = None
        self._board: Any = None
        self._last = (time.perf_counter(), first_step)
        self._paused = 0.0
        if not active:
            return
        path = output / "metrics.jsonl"
        _keep_until(path, first_step)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(output / "tensorboard"), purge_step=first_step)

    def restart(self, step: int) -> None:
        """Start measuring throughput now, after `step` steps."""
        self._last, self._paused = (time.perf_counter(), step), 0.0

    def event(self, kind: str, **values: Any) -> None:
        """Report anything."""
        if self._file is None:
            return
        record = {"event": kind, "time": round(time.time(), 6), **values}
        self._file.write(json.dumps(record) + "\n")
        if self._board is not None and kind == "step":
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, values["step"])
        if self.on_event is not None:
            self.on_event(record)

    def step(self, step: int, steps: int, batch_size: int, **values: Any) -> None:
        """Report an interval that ends after `step` steps, with throughput and remaining time."""
        if self._file is None:
            return
        now = time.perf_counter()
        seconds = max(1e-9, now - self._last[0] - self._paused)
        per_step = seconds / max(1, step - self._last[1])
        self._last, self._paused = (now, step), 0.0
        self.event(
            "step",
            step=step,
            steps=steps,
            **values,
            images_per_second=round(batch_size / per_step, 3),
            seconds_per_step=round(per_step, 5),
            eta_seconds=round((steps - step) * per_step, 1),
            memory_mb=round(peak_memory_mb(), 1),
        )

    def pause(self, seconds: float) -> None:
        """Leave `seconds` (sampling, checkpoints) out of the throughput."""
        self._paused += seconds

    def image(self, name: str, image_path: Path, step: int) -> None:
        """Show a picture in TensorBoard."""
        if self._board is not None:
            import numpy as np
            from PIL import Image

            self._board.add_image(name, np.asarray(Image.open(image_path)), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files."""
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()
        self._file = self._board = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl; a torn last line is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def last_loss(path: Path) -> float:
    """Return the loss of the last interval that a metrics.jsonl reports, NaN if there is none."""
    losses = [record["loss"] for record in read_metrics(path) if "loss" in record]
    return losses[-1] if losses else float("nan")


def _keep_until(path: Path, step: int) -> None:
    """Drop records of steps that will be done again, so that a resumed file reads as one run."""
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    temporary.replace(path)

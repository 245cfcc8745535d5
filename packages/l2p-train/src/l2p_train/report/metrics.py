"""What a run reports: `metrics.jsonl` (one line per interval), trackers, and an event function."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from l2p_run.errors import raised_as
from l2p_run.places import write_jsonl
from torch import Tensor

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.report.trackers import Tracker, open_trackers

T = TypeVar("T")
Event = Mapping[str, Any]
SIGMA_BINS = 4  # eq. 5's loss is also reported per quarter of the sigma axis, image end first


def peak_memory_mb() -> float:
    """Return this process's peak memory in MiB: the device's on a GPU, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def loss_sums(losses: Tensor, sigma: Tensor) -> Tensor:
    """Return [sum of losses, count, sum per quarter of sigma ..., count per quarter ...] in float64.

    Args:
        losses: (B,) eq. 5 per sample, on any device.
        sigma: (B,) in [0, 1], on the CPU.
    """
    losses = losses.detach().double().cpu()
    bins = (sigma * SIGMA_BINS).long().clamp(max=SIGMA_BINS - 1)
    sums = torch.zeros(2 + 2 * SIGMA_BINS, dtype=torch.float64)
    sums[0], sums[1] = losses.sum(), len(losses)
    sums[2:].index_add_(0, bins, losses)
    sums[2:].index_add_(0, bins + SIGMA_BINS, torch.ones_like(losses))
    return sums


def loss_by_sigma(sums: Tensor) -> list[float | None]:
    """Return the mean loss per quarter of the sigma axis from `loss_sums`, None where nothing fell."""
    losses, counts = sums[2 : 2 + SIGMA_BINS], sums[2 + SIGMA_BINS :]
    return [float(loss / count) if count else None for loss, count in zip(losses, counts, strict=True)]


class Reporter:
    """Writes the reports of process 0; in other processes it does nothing.

    Throughput counts training alone: sampling, validation and checkpoints are left out. `tflops` is that of
    one process's share of the model FLOPs, `mfu` its part of the device's peak where that is known,
    `loader_share` the part of the time in which process 0 waited for its next batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        active: bool,
        first_step: int,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.on_event = on_event
        self.flops_per_image, self.processes = 0.0, 1
        self.peak_tflops: float | None = None
        self._file: Any = None
        self._trackers: list[Tracker] = []
        self.restart(first_step)
        if not active:
            return
        path = config.output / "metrics.jsonl"
        _keep_until(path, first_step)
        self._trackers = open_trackers(config, first_step)  # may raise, and then no file is left open
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def count_flops(self, per_image: float, peak_tflops: float | None, processes: int) -> None:
        """Report utilisation from now on: FLOPs of an image, TFLOP/s of a device, number of devices."""
        self.flops_per_image, self.peak_tflops, self.processes = per_image, peak_tflops, processes

    def restart(self, step: int) -> None:
        """Start measuring throughput now, after `step` steps."""
        self._last, self._paused, self._waited = (time.perf_counter(), step), 0.0, 0.0

    def waiting(self, stream: Iterable[T]) -> Iterator[T]:
        """Yield what `stream` yields; the time that it takes is the loader's."""
        source = iter(stream)
        while True:
            started = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            self._waited += time.perf_counter() - started
            yield item

    def event(self, kind: str, **values: Any) -> None:
        """Report anything; numbers of a step or a validation become curves."""
        if self._file is None:
            return
        record = {"event": kind, "time": round(time.time(), 6), **values}
        self._file.write(json.dumps(record) + "\n")
        if kind in ("step", "validation"):
            prefix = "" if kind == "step" else "validation_"
            curves = {f"{prefix}{name}": value for name, value in values.items() if isinstance(value, float)}
            for tracker in self._trackers:
                tracker.scalars(values["step"], curves)
        if self.on_event is not None:
            self.on_event(record)

    def step(self, step: int, steps: int, batch_size: int, **values: Any) -> None:
        """Report an interval that ends after `step` steps, with throughput and remaining time."""
        if self._file is None:
            return
        seconds = max(1e-9, time.perf_counter() - self._last[0] - self._paused)
        per_step = seconds / max(1, step - self._last[1])
        tflops = self.flops_per_image * batch_size / per_step / self.processes / 1e12
        use = {"tflops": round(tflops, 6)} if tflops else {}
        if tflops and self.peak_tflops:
            use["mfu"] = round(tflops / self.peak_tflops, 6)
        waited = self._waited / seconds
        self.restart(step)
        self.event(
            "step",
            step=step,
            steps=steps,
            **values,
            images_per_second=round(batch_size / per_step, 3),
            seconds_per_step=round(per_step, 5),
            **use,
            loader_share=round(waited, 5),
            eta_seconds=round((steps - step) * per_step, 1),
            memory_mb=round(peak_memory_mb(), 1),
        )

    def pause(self, seconds: float) -> None:
        """Leave `seconds` (sampling, checkpoints) out of the throughput."""
        self._paused += seconds

    def image(self, name: str, path: Path, step: int) -> None:
        """Show a picture in the trackers."""
        for tracker in self._trackers:
            tracker.image(step, name, path)

    def close(self) -> None:
        """Flush and close everything."""
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()
        self._file, self._trackers = None, []


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl; a torn last line is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def last_loss(path: Path) -> float:
    """Return the loss of the last interval that a metrics.jsonl reports, NaN if there is none."""
    losses = [record["loss"] for record in read_metrics(path) if "loss" in record]
    return losses[-1] if losses else float("nan")


def _keep_until(path: Path, step: int) -> None:
    """Drop records of steps that will be done again, so that a resumed file reads as one run."""
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step]
    with raised_as(TrainError):
        write_jsonl(path, kept)

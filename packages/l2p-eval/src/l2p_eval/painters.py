"""Who paints the batches of an evaluation: this process, one process per device, or Ray actors."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from l2p_run.usage import usable_cores
from PIL import Image

from l2p_eval.errors import EvalError
from l2p_eval.layout import write_image

Paint = Callable[[Sequence[str], Sequence[int]], Sequence[Image.Image]]
"""Prompts and seeds -> one image each. An image must not depend on its batch."""
Load = Callable[[str], Paint]
"""Device ("cpu", "cuda:1") -> Paint. For more than one process it must be picklable."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to paint."""

    prompt_index: int
    sample: int
    prompt: str
    seed: int


def default_workers() -> int:
    """Return one per GPU; without one, one per core that this process may use."""
    import torch

    return torch.cuda.device_count() or usable_cores()


_PAINT: Paint  # of a worker process


def _paint_batch(batch: Sequence[Job], folder: Path, paint: Paint | None = None) -> int:
    """Paint a batch, by default with the worker process's own model, and writes its images."""
    images = (paint or _PAINT)([job.prompt for job in batch], [job.seed for job in batch])
    for job, image in zip(batch, images, strict=True):
        write_image(image, folder, job.prompt_index, job.sample)
    return len(batch)


def here(load: Load, batches: Sequence[Sequence[Job]], folder: Path, workers: int) -> Iterator[int]:
    """Paint in this process; yield how many images each batch gave."""
    paint = load(_device(0))
    for batch in batches:
        yield _paint_batch(batch, folder, paint)


def in_processes(load: Load, batches: Sequence[Sequence[Job]], folder: Path, workers: int) -> Iterator[int]:
    """Paint in `workers` processes of this machine, one per GPU where there are any."""
    context = get_context("spawn")
    order = context.SimpleQueue()
    for number in range(workers):
        order.put(number)
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(load, order)) as pool:
        try:
            for future in as_completed([pool.submit(_paint_batch, batch, folder) for batch in batches]):
                yield future.result()
        except BrokenProcessPool:
            raise EvalError(
                "a process that paints died (out of memory?); the images painted so far are kept:"
                " try again with a smaller batch or fewer workers"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(load: Load, order: Any) -> None:
    """Load the model in a worker process, on its own device."""
    global _PAINT
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    torch.set_num_threads(1)
    try:
        _PAINT = load(_device(order.get()))
    except (OSError, ValueError) as error:  # here it would only break the pool: said with the first batch
        _PAINT = partial(_refuse, error)


def _refuse(error: Exception, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
    raise error


def _device(number: int) -> str:
    import torch

    return f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


class _RayPainter:
    """An actor with its own model. `folder` must be on storage that all nodes share."""

    def __init__(self, load: Load, folder: Path) -> None:
        self.paint, self.folder = load(_device(0)), folder  # Ray shows an actor its own GPU only

    def work(self, batch: Sequence[Job]) -> int:
        return _paint_batch(batch, self.folder, self.paint)


def on_ray(
    load: Load,
    batches: Sequence[Sequence[Job]],
    folder: Path,
    workers: int,
    resources: Mapping[str, float] | None = None,
) -> Iterator[int]:
    """Paint in `workers` Ray actors; `folder` must be on storage that all nodes share."""
    from l2p_run.cluster import ray_session, workers_that_fit

    address = os.environ.get("RAY_ADDRESS")  # a running cluster
    with ray_session(address, cpus=workers, setting="RAY_ADDRESS", without="--executor processes") as ray:
        known = ray.cluster_resources()
        gpus = 1 if known.get("GPU", 0) >= 1 else 0
        workers_that_fit(known, dict(resources or {}))  # refuses what no node has, which would wait for ever
        try:
            # Each try while its node is gone counts as a retry, so that only the restarts are bounded.
            actor = ray.remote(
                num_cpus=1,
                num_gpus=gpus,
                resources=dict(resources or {}),
                max_restarts=2,
                max_task_retries=-1,
            )(_RayPainter)
            pool = ray.util.ActorPool([actor.remote(load, folder.absolute()) for _ in range(workers)])
            yield from pool.map_unordered(lambda painter, batch: painter.work.remote(batch), batches)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise EvalError(f"Ray could not paint: {reason}; the images painted so far are kept") from None

"""Images for an evaluation, in GenEval's layout: every model paints the same prompts with the same seeds.

What paints is a function that the caller brings; here it is run over the missing images, in this process, in
one process per device, or on Ray. Images that are there are kept, so the same call goes on where it stopped;
a folder that other settings filled is refused.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from l2p_eval.errors import EvalError
from l2p_eval.layout import image_path, write_image

Paint = Callable[[Sequence[str], Sequence[int]], Sequence[Image.Image]]
"""Prompts and seeds -> one image each. An image must not depend on its batch."""
Load = Callable[[str], Paint]
"""Device ("cpu", "cuda:1") -> Paint. For more than one process it must be picklable."""
Executor = Literal["processes", "ray"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to paint."""

    prompt_index: int
    sample: int
    prompt: str
    seed: int


def plan_jobs(prompts: Sequence[str], images_per_prompt: int, seed: int) -> list[Job]:
    """Every image of an evaluation; consecutive seeds from `seed`."""
    if not prompts or images_per_prompt < 1:
        raise EvalError(
            f"{len(prompts)} prompts with {images_per_prompt} images each: nothing to paint; give 1 of each"
        )
    return [
        Job(prompt_index=index, sample=sample, prompt=prompt, seed=seed + index * images_per_prompt + sample)
        for index, prompt in enumerate(prompts)
        for sample in range(images_per_prompt)
    ]


def generate_images(
    load: Load,
    jobs: Sequence[Job],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    batch_size: int = 8,
    workers: int = 0,
    executor: Executor = "processes",
    resources: Mapping[str, float] | None = None,
    replace: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Paints what `folder` lacks of `jobs`; returns all their files, in order.

    Args:
        settings: JSON values that define the images beside the jobs (model fingerprint, size, sampling).
        resources: custom resources of the Ray cluster that each actor takes: which nodes paint.
        replace: delete the images of other settings or prompts; by default their folder is refused.
        workers: processes or Ray actors, each with its own model; 0 paints in this process.
        on_image: called with (images there, images in all).

    Raises:
        EvalError: the folder holds images of other settings, or a process died.
    """
    claim_folder(folder, jobs, settings, replace=replace)
    paths = [image_path(folder, job.prompt_index, job.sample) for job in jobs]
    missing = [job for job, path in zip(jobs, paths, strict=True) if not path.is_file()]
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    done = len(jobs) - len(missing)
    if on_image:
        on_image(done, len(jobs))
    executors: dict[Executor, Callable[..., Iterator[int]]] = {
        "processes": _in_processes,
        "ray": partial(_on_ray, resources=resources),
    }
    run = executors[executor] if workers else _here
    for count in run(load, batches, folder, min(workers, len(batches))) if batches else ():
        done += count
        if on_image:
            on_image(done, len(jobs))
    return paths


def default_workers() -> int:
    """One per GPU; without one, one per core that this process may use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.cuda.device_count() or cores


def claim_folder(
    folder: Path, jobs: Sequence[Job], settings: Mapping[str, Any], *, replace: bool = False
) -> None:
    """Writes down what fills `folder`, or checks that it is the same as before.

    Raises:
        EvalError: it is not, and not to be replaced; or the folder cannot be written.
    """
    painting = hashlib.sha256(json.dumps([asdict(job) for job in jobs]).encode()).hexdigest()
    wanted = json.loads(
        json.dumps({"settings": dict(settings), "jobs_sha256": painting, "images": len(jobs)})
    )
    note = folder / "generation.json"
    if note.is_file():
        try:
            known = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            raise EvalError(f"{note} is damaged; choose another output or delete {folder}") from None
        if known == wanted:
            return
        if not replace:
            raise EvalError(
                f"{folder} holds images of other settings ({_difference(known, wanted)});"
                " choose another output or delete that folder"
            )
        shutil.rmtree(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise EvalError(f"{folder} holds other files; choose another output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = note.with_suffix(".partial")
        partial.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        partial.replace(note)
    except OSError as error:
        raise EvalError(f"cannot write to {folder}: {error.strerror}; choose another output") from None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    before, after = old.get("settings", {}), new["settings"]
    changes = [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    return "; ".join(changes) or "other prompts or seeds"


# ---------------------------------------------------------------------------------------------- executors

_PAINT: Paint  # of a worker process


def _paint_batch(batch: Sequence[Job], folder: Path, paint: Paint | None = None) -> int:
    """Paints a batch, by default with the worker process's own model, and writes its images."""
    images = (paint or _PAINT)([job.prompt for job in batch], [job.seed for job in batch])
    for job, image in zip(batch, images, strict=True):
        write_image(image, folder, job.prompt_index, job.sample)
    return len(batch)


def _here(load: Load, batches: Sequence[Sequence[Job]], folder: Path, workers: int) -> Iterator[int]:
    paint = load(_device(0))
    for batch in batches:
        yield _paint_batch(batch, folder, paint)


def _in_processes(load: Load, batches: Sequence[Sequence[Job]], folder: Path, workers: int) -> Iterator[int]:
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
    """Loads the model in a worker process, on its own device."""
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


def _on_ray(
    load: Load,
    batches: Sequence[Sequence[Job]],
    folder: Path,
    workers: int,
    resources: Mapping[str, float] | None = None,
) -> Iterator[int]:
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # the actors share this environment
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise EvalError(
            "Ray is not installed; run `pip install ray`, or use the processes executor"
        ) from None
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")  # a running cluster
        local = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 200 << 20}
        ray.init(
            address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else local)
        )
    try:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        # Each try while its node is gone counts as a retry, so that only the restarts are bounded.
        actor = ray.remote(
            num_cpus=1, num_gpus=gpus, resources=dict(resources or {}), max_restarts=2, max_task_retries=-1
        )(_RayPainter)
        pool = ActorPool([actor.remote(load, folder.absolute()) for _ in range(workers)])
        yield from pool.map_unordered(lambda painter, batch: painter.work.remote(batch), batches)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise EvalError(f"Ray could not paint: {reason}; the images painted so far are kept") from None
    finally:
        if started:
            ray.shutdown()

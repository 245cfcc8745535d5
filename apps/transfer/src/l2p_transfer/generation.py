"""Images for an evaluation: the source and the L2P model paint the same prompts with the same seeds.

Several processes, each with its own copy of the model (one per GPU; on a CPU one per core, a thread each).
Images that are there are not painted again, unless model or settings changed since.
"""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from l2p_eval.layout import image_path, write_image

from l2p_transfer.errors import TransferError
from l2p_transfer.memory import usable_cores
from l2p_transfer.paths import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Painter:
    """A model and how it samples."""

    kind: Literal["source", "l2p"]
    model: str  # directory
    fingerprint: str  # changes when the weights do
    width: int
    height: int
    dtype: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline's call


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to paint."""

    prompt_index: int
    sample: int
    prompt: str
    seed: int


def plan_jobs(prompts: Sequence[str], images_per_prompt: int, seed: int) -> list[Job]:
    """Every image of an evaluation; consecutive seeds from `seed`."""
    return [
        Job(prompt_index=index, sample=sample, prompt=prompt, seed=seed + index * images_per_prompt + sample)
        for index, prompt in enumerate(prompts)
        for sample in range(images_per_prompt)
    ]


def paint(
    painter: Painter,
    jobs: Sequence[Job],
    folder: Path,
    *,
    batch_size: int,
    workers: int,
    on_image: Callable[[int, int], None],
) -> None:
    """Fills `folder` (GenEval's layout) with the images of `jobs`.

    Args:
        workers: processes; 0 paints in this one.
        on_image: called with (images there, images in all).
    """
    import torch

    _claim(folder, painter, jobs)
    missing = [job for job in jobs if not image_path(folder, job.prompt_index, job.sample).is_file()]
    done = len(jobs) - len(missing)
    on_image(done, len(jobs))
    if not missing:
        return
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    if workers == 0:
        call = load_pipeline(painter, "cuda" if torch.cuda.is_available() else "cpu")
        for batch in batches:
            done += _paint_batch(batch, folder, call)
            on_image(done, len(jobs))
        return
    workers = min(workers, len(batches))
    context = get_context("spawn")
    order = context.SimpleQueue()
    for number in range(workers):
        order.put(number)
    with ProcessPoolExecutor(workers, context, initializer=_load, initargs=(painter, order)) as pool:
        try:
            for future in as_completed([pool.submit(_paint_batch, batch, folder) for batch in batches]):
                done += future.result()
                on_image(done, len(jobs))
        except BrokenProcessPool:
            raise TransferError(
                f"a process that paints with {painter.model} died (out of memory?);"
                " try a smaller evaluate.batch_size or fewer evaluate.workers"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def resolve_dtype(dtype: str) -> str:
    """What "auto" means on this machine: bfloat16 on a GPU or a CPU that multiplies in it, else float32."""
    import torch

    if dtype != "auto":
        return dtype
    fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def default_workers() -> int:
    """One process per GPU; without one, per core of those this process may use."""
    import torch

    return torch.cuda.device_count() or usable_cores()


def _claim(folder: Path, painter: Painter, jobs: Sequence[Job]) -> None:
    """Empties a folder whose images came from another model, other settings or other prompts."""
    settings = asdict(painter)
    settings.pop("model")  # the fingerprint says it; a directory may be moved
    content = {"painter": settings, "jobs": [asdict(job) for job in jobs]}
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    note = folder / "generation.json"
    known = read_json(note)
    if known is not None and known["identity"] == identity:
        return
    shutil.rmtree(folder, ignore_errors=True)
    write_json(note, {"identity": identity, "painter": asdict(painter), "images": len(jobs)})


Pipeline = Callable[[Sequence[str], Sequence[int]], list[Any]]
_PIPELINE: Pipeline  # of a worker process, set by _load


def _load(painter: Painter, order: Any) -> None:
    """Loads the model in a worker process, on its own device."""
    global _PIPELINE
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides

    torch.set_num_threads(1)
    number = order.get()
    device = f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    _PIPELINE = load_pipeline(painter, device)


def load_pipeline(painter: Painter, device: str) -> Pipeline:
    """A function from prompts and seeds to images; an image does not depend on its batch."""
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from l2p_arch import L2PPipeline
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    kind = L2PPipeline if painter.kind == "l2p" else DiffusionPipeline
    pipeline = kind.from_pretrained(
        painter.model, dtype=getattr(torch, painter.dtype), local_files_only=True, use_safetensors=True
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def call(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images: list[Any] = pipeline(
            prompt=list(prompts),
            height=painter.height,
            width=painter.width,
            generator=generators,
            **painter.options,
        ).images
        return images

    return call


def _paint_batch(batch: Sequence[Job], folder: Path, call: Pipeline | None = None) -> int:
    """Paints a batch, by default with the worker process's own pipeline, and writes its images."""
    images = (call or _PIPELINE)([job.prompt for job in batch], [job.seed for job in batch])
    for job, image in zip(batch, images, strict=True):
        write_image(image, folder, job.prompt_index, job.sample)
    return len(batch)

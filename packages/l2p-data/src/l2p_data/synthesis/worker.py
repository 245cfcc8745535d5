"""One worker of the synthesis: holds a diffusers pipeline, turns one shard's prompts into one Parquet file
at a time.

Runs in a Ray actor; has no state besides the pipeline, so that any worker may make any shard.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from l2p_run.devices import resolve_dtype
from l2p_run.sizes import Size
from numpy.typing import NDArray
from PIL import Image

from l2p_data.corpus.dataset import write_shard
from l2p_data.corpus.files import location, one_line, write_json
from l2p_data.corpus.images import encode_image, image_fault
from l2p_data.corpus.manifest import Failure
from l2p_data.errors import DataError
from l2p_data.synthesis.checks import CheckSettings, ImageCheck
from l2p_data.synthesis.ledger import attempts_path, begun_attempts, ledger_path
from l2p_data.synthesis.long_prompts import LongPrompts
from l2p_data.synthesis.plain_reads import unmapped

Batch = Sequence[Mapping[str, Any]]
Pixels = NDArray[np.floating]  # (H, W, 3) in [0, 1]
#: prompts, seeds, (width, height) -> images: what is left of a pipeline once its settings are fixed.
ImageGenerator = Callable[[Sequence[str], Sequence[int], Size], list[Pixels]]


@dataclass(frozen=True)
class Made:
    """What became of a row: an image, or the error of the last attempt."""

    result: Pixels | Exception
    attempts: int


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """All a worker needs to know; travels to other machines."""

    model: str  # diffusers directory
    corpus: str  # directory of the shards
    source_model: str  # for the column of that name
    batch_size: int
    threads: int  # of torch, within the worker
    dtype: str  # "auto", "float32", "bfloat16", "float16"
    image_format: str  # "png" or "jpeg"
    max_attempts: int  # per image, the batch's attempt included
    pipeline_kwargs: Mapping[str, Any] = field(default_factory=dict)
    min_entropy: float = 0.0  # bits, see `images.image_fault`
    checks: CheckSettings = field(default_factory=CheckSettings)
    cpu_offload: bool = False  # what is not at work waits in host memory
    device: str = "cpu"  # or "cuda"


_MAX_DEATHS = 3  # of workers, over one and the same shard


class SynthesisWorker:
    """Callable for `ray.data.Dataset.map_batches`: {"shard": [i], "rows": [json]} -> {"result": [json]}.

    It never raises: an exception would make Ray retry or kill the whole job. What goes wrong is in the
    result.
    """

    long_prompts: LongPrompts | None = None

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.broken: str | None = None
        self.long_prompts = LongPrompts()
        try:
            self.checks = settings.checks.load(settings.device)
            self.generate = load_generator(settings, self.long_prompts)
        except Exception as error:  # reported with the first shard; see the class docstring
            self.broken = one_line(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        results = []
        for index, rows in zip(batch["shard"], batch["rows"], strict=True):
            if self.broken is not None:
                results.append({"shard": int(index), "broken": self.broken})
                continue
            try:
                results.append(self._make(int(index), json.loads(rows)))
            except Exception as error:  # the disk is full, say
                results.append({"shard": int(index), "broken": one_line(error)})
        return {"result": [json.dumps(result) for result in results]}

    def _make(self, index: int, rows: Batch) -> dict[str, Any]:
        """Return `make_shard`, but a shard that keeps killing its worker is given up: Ray would restart
        workers for ever."""
        corpus = location(self.settings.corpus)
        attempts, deaths = attempts_path(corpus, index), begun_attempts(corpus, index)
        if deaths >= _MAX_DEATHS:
            cause = f"shard {index} killed its worker {deaths} times; a smaller batch_size needs less memory"
            return {"shard": index, "broken": cause}
        attempts.parent.mkdir(parents=True, exist_ok=True)
        attempts.write_text(str(deaths + 1))
        entry = make_shard(index, rows, self.generate, self.settings, self.checks, self.long_prompts)
        attempts.unlink(missing_ok=True)
        return entry


def load_generator(settings: WorkerSettings, long_prompts: LongPrompts | None = None) -> ImageGenerator:
    """Load the pipeline from local files and fix its settings. Only safetensors are accepted, never
    pickles.

    Args:
        long_prompts: is told of every prompt that the pipeline's tokenizers cut.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import torch
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise DataError(f"{one_line(error)}; install l2p-data[diffusers]") from error

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity(logging.CRITICAL)  # what fails is said once, by us
    torch.set_num_threads(settings.threads)
    dtype = getattr(torch, resolve_dtype(settings.dtype, settings.device))
    pipeline = DiffusionPipeline.from_pretrained(
        settings.model,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        **unmapped(Path(settings.model), dtype),
    )
    if settings.cpu_offload:
        pipeline.enable_model_cpu_offload(device=settings.device)
    else:
        pipeline.to(settings.device)
    pipeline.set_progress_bar_config(disable=True)
    if long_prompts is not None:
        long_prompts.watch(pipeline)
    vae = getattr(pipeline, "vae", None)
    if vae is not None and settings.device == "cpu":
        vae.to(memory_format=torch.channels_last)  # convolutions on a CPU are fastest in this layout

    @torch.inference_mode()
    def generate(prompts: Sequence[str], seeds: Sequence[int], size: Size) -> list[Pixels]:
        # One generator per image, on the CPU: an image's noise depends neither on its batch nor on the
        # device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = pipeline(
            prompt=list(prompts),
            width=size[0],
            height=size[1],
            generator=generators,
            output_type="np",
            **settings.pipeline_kwargs,
        ).images
        if len(images) != len(prompts):
            raise RuntimeError(f"the pipeline returned {len(images)} images for {len(prompts)} prompts")
        return list(images)

    return generate


@contextmanager
def threads_as_found() -> Iterator[None]:
    """Set PyTorch's number of threads at the end to what it was at the beginning."""
    try:
        import torch
    except ImportError:  # `load_generator` says what to install
        yield
        return
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_shard(
    index: int,
    rows: Batch,
    generate: ImageGenerator,
    settings: WorkerSettings,
    checks: Sequence[ImageCheck] = (),
    long_prompts: LongPrompts | None = None,
) -> dict[str, Any]:
    """Make one shard and its ledger entry; returns the entry. A shard in which every row failed is not
    written.

    Images are checked and encoded in a thread while the pipeline makes the next batch.
    """
    finished: list[dict[str, Any]] = []
    failures: list[Failure] = []
    with ThreadPoolExecutor(max_workers=1) as pool:
        results = []
        for batch in batches(rows, settings.batch_size):
            images = make_images(batch, generate, settings.max_attempts)
            results.append(pool.submit(finish_batch, batch, images, settings, checks))
        for result in results:
            made, failed = result.result()
            finished += made
            failures += failed
    entry: dict[str, Any] = {"shard": index, "failures": [asdict(failure) for failure in failures]}
    if long_prompts is not None and (cut := long_prompts.of(row["prompt"] for row in rows)):
        entry["cut_prompts"] = cut
    if finished:
        corpus = location(settings.corpus)
        entry["file"] = asdict(write_shard(corpus, index, finished))
        write_json(ledger_path(corpus, index), entry)
    return entry


def batches(rows: Batch, most: int) -> Iterator[Batch]:
    """Consecutive rows of one size, at most `most` at a time."""
    for _, group in groupby(rows, key=lambda row: (row["width"], row["height"])):
        same = list(group)
        for start in range(0, len(same), most):
            yield same[start : start + most]


def make_images(rows: Batch, generate: ImageGenerator, max_attempts: int) -> list[Made]:
    """Return an image or an error for each row. If the batch fails as a whole, each row is tried alone: a
    bad row costs itself only."""
    size = Size(width=rows[0]["width"], height=rows[0]["height"])
    try:
        images = generate([row["prompt"] for row in rows], [row["seed"] for row in rows], size)
        return [Made(image, 1) for image in images]
    except Exception as error:
        if max_attempts <= 1:
            return [Made(error, 1)] * len(rows)
        return [_alone(row, generate, size, max_attempts) for row in rows]


def _alone(row: Mapping[str, Any], generate: ImageGenerator, size: Size, attempts: int) -> Made:
    """Return the image of one row, or the last of its exceptions. The batch was the first attempt."""
    last: Exception = RuntimeError("not tried")
    for attempt in range(2, attempts + 1):
        try:
            return Made(generate([row["prompt"]], [row["seed"]], size)[0], attempt)
        except Exception as error:
            last = error
    return Made(last, attempts)


def finish_batch(
    rows: Batch, images: Sequence[Made], settings: WorkerSettings, checks: Sequence[ImageCheck]
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Check and encode the images of some rows: corpus rows, and what failed."""
    faults: list[str | None] = []
    pictures: dict[int, Image.Image] = {}
    for index, made in enumerate(images):
        if isinstance(made.result, Exception):
            faults.append(one_line(made.result))
            continue
        faults.append(image_fault(made.result, settings.min_entropy))
        if faults[-1] is None:
            pictures[index] = Image.fromarray(np.round(np.clip(made.result, 0, 1) * 255).astype(np.uint8))
    for check in checks:
        good = [index for index in pictures if faults[index] is None]
        prompts = [rows[index]["prompt"] for index in good]
        found: Sequence[str | None] = []
        try:
            found = check.faults([pictures[index] for index in good], prompts) if good else []
        except Exception as error:  # what could not be checked does not count as clean
            found = [f"unchecked: {one_line(error)}"] * len(good)
        for index, fault in zip(good, found, strict=True):
            faults[index] = fault
    finished, failures = [], []
    for index, (row, made, fault) in enumerate(zip(rows, images, faults, strict=True)):
        if fault is None:
            finished.append(_corpus_row(row, pictures[index], settings))
        else:
            failures.append(Failure(id=row["id"], seed=row["seed"], error=fault, attempts=made.attempts))
    return finished, failures


def _corpus_row(row: Mapping[str, Any], image: Image.Image, settings: WorkerSettings) -> dict[str, Any]:
    content = encode_image(image, settings.image_format)
    suffix = {"png": "png", "jpeg": "jpg"}[settings.image_format]
    made = {"bytes": content, "path": f"{row['id']}.{suffix}"}
    size = {"width": image.width, "height": image.height}
    return {**row, **size, "image": made, "source_model": settings.source_model}

"""One worker of the synthesis: holds a diffusers pipeline, turns one shard's prompts into one Parquet file
at a time.

Runs in a Ray actor; has no state besides the pipeline, so that any worker may make any shard.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from l2p_data.dataset import Failure, encode_image, write_shard
from l2p_data.errors import DataError
from l2p_data.files import one_line, write_json
from l2p_data.images import BadImageError, image_fault

Batch = Sequence[Mapping[str, Any]]
Pixels = NDArray[np.floating]  # (H, W, 3) in [0, 1]
#: prompts, seeds -> images: what is left of a pipeline once its settings are fixed.
ImageGenerator = Callable[[Sequence[str], Sequence[int]], list[Pixels]]


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """All a worker needs to know; travels to other machines."""

    model: str  # diffusers directory
    corpus: str  # directory of the shards
    source_model: str  # for the column of that name
    width: int  # px
    height: int  # px
    batch_size: int
    threads: int  # of torch, within the worker
    dtype: str  # "auto", "float32", "bfloat16", "float16"
    image_format: str  # "png" or "jpeg"
    max_attempts: int  # per image, the batch's attempt included
    pipeline_kwargs: Mapping[str, Any] = field(default_factory=dict)
    min_entropy: float = 0.0  # bits, see `images.image_fault`
    device: str = "cpu"  # or "cuda"


_MAX_DEATHS = 3  # of workers, over one and the same shard


class SynthesisWorker:
    """Callable for `ray.data.Dataset.map_batches`: {"shard": [i], "rows": [json]} -> {"result": [json]}.

    It never raises: an exception would make Ray retry or kill the whole job. What goes wrong is in the
    result.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.broken: str | None = None
        try:
            self.generate = load_generator(settings)
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
        """`make_shard`, but a shard that keeps killing its worker is given up: Ray would restart workers for
        ever."""
        attempts = attempts_path(Path(self.settings.corpus), index)
        deaths = int(attempts.read_text()) if attempts.is_file() else 0
        if deaths >= _MAX_DEATHS:
            cause = f"shard {index} killed its worker {deaths} times; a smaller batch_size needs less memory"
            return {"shard": index, "broken": cause}
        attempts.parent.mkdir(parents=True, exist_ok=True)
        attempts.write_text(str(deaths + 1))
        entry = make_shard(index, rows, self.generate, self.settings)
        attempts.unlink(missing_ok=True)
        return entry


def load_generator(settings: WorkerSettings) -> ImageGenerator:
    """Load the pipeline from local files and fix its settings. Only safetensors are accepted, never
    pickles."""
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
        logging.set_verbosity_error()
    torch.set_num_threads(settings.threads)
    pipeline = DiffusionPipeline.from_pretrained(
        settings.model, dtype=_dtype(settings), local_files_only=True, use_safetensors=True
    ).to(settings.device)
    pipeline.set_progress_bar_config(disable=True)
    vae = getattr(pipeline, "vae", None)
    if vae is not None and settings.device == "cpu":
        vae.to(memory_format=torch.channels_last)  # convolutions on a CPU are fastest in this layout

    @torch.inference_mode()
    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        # One generator per image, on the CPU: an image's noise depends neither on its batch nor on the
        # device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = pipeline(
            prompt=list(prompts),
            width=settings.width,
            height=settings.height,
            generator=generators,
            output_type="np",
            **settings.pipeline_kwargs,
        ).images
        if len(images) != len(prompts):
            raise RuntimeError(f"the pipeline returned {len(images)} images for {len(prompts)} prompts")
        return list(images)

    return generate


def _dtype(settings: WorkerSettings) -> Any:
    """The torch dtype to compute in."""
    import torch

    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    features = torch.cpu.get_capabilities()
    in_hardware = (
        settings.device == "cuda"
        or features.get("avx512_bf16")
        or features.get("amx_bf16")
        or features.get("bf16")
    )
    return torch.bfloat16 if in_hardware else torch.float32


def make_shard(index: int, rows: Batch, generate: ImageGenerator, settings: WorkerSettings) -> dict[str, Any]:
    """Make one shard and its ledger entry; returns the entry. A shard in which every row failed is not
    written."""
    finished: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for start in range(0, len(rows), settings.batch_size):
        made, failed = make_batch(rows[start : start + settings.batch_size], generate, settings)
        finished += made
        failures += failed
    entry: dict[str, Any] = {"shard": index, "failures": [asdict(failure) for failure in failures]}
    if finished:
        corpus = Path(settings.corpus)
        entry["file"] = asdict(write_shard(corpus, index, finished))
        write_json(ledger_path(corpus, index), entry)
    return entry


def ledger_path(corpus: Path, index: int) -> Path:
    """Where a finished shard's row count, hash and failures are noted: its existence marks the shard as
    done."""
    return corpus / "ledger" / f"part-{index:05d}.json"


def attempts_path(corpus: Path, index: int) -> Path:
    """Where it is noted how often a shard was begun in this run; gone when the shard is done."""
    return corpus / "ledger" / f"part-{index:05d}.attempts"


def make_batch(
    rows: Batch, generate: ImageGenerator, settings: WorkerSettings
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Images for some rows. If the batch fails as a whole, each row is tried alone: a bad row costs itself
    only."""
    made: list[dict[str, Any]] = []
    failures: list[Failure] = []
    attempts = 1
    images: Sequence[Pixels | Exception]
    try:
        images = generate([row["prompt"] for row in rows], [row["seed"] for row in rows])
    except Exception as error:
        if settings.max_attempts <= 1:
            images = [error] * len(rows)
        else:
            attempts = settings.max_attempts
            images = [_alone(row, generate, attempts - 1) for row in rows]
    for row, image in zip(rows, images, strict=True):
        try:
            if isinstance(image, Exception):
                raise image
            made.append(_corpus_row(row, image, settings))
        except Exception as error:
            tried = 1 if isinstance(error, BadImageError) else attempts
            failures.append(Failure(id=row["id"], seed=row["seed"], error=one_line(error), attempts=tried))
    return made, failures


def _alone(row: Mapping[str, Any], generate: ImageGenerator, attempts: int) -> Pixels | Exception:
    """The image of one row, or the last of `attempts` exceptions."""
    last: Exception = RuntimeError("not tried")
    for _ in range(attempts):
        try:
            return generate([row["prompt"]], [row["seed"]])[0]
        except Exception as error:
            last = error
    return last


def _corpus_row(row: Mapping[str, Any], pixels: Pixels, settings: WorkerSettings) -> dict[str, Any]:
    if fault := image_fault(pixels, settings.min_entropy):
        raise BadImageError(fault)
    image = Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    content = encode_image(image, settings.image_format)
    suffix = {"png": "png", "jpeg": "jpg"}[settings.image_format]
    made = {"bytes": content, "path": f"{row['id']}.{suffix}"}
    size = {"width": image.width, "height": image.height}
    return {**row, **size, "image": made, "source_model": settings.source_model}

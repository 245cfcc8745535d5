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

from PIL import Image

from l2p_data.dataset import Failure, encode_image, write_shard
from l2p_data.files import one_line, write_json

Batch = Sequence[Mapping[str, Any]]
#: prompts, seeds -> images: what is left of a pipeline once its settings are fixed.
ImageGenerator = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]


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
    device: str = "cpu"  # or "cuda"


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
                results.append(make_shard(int(index), json.loads(rows), self.generate, self.settings))
            except Exception as error:  # the disk is full, say
                results.append({"shard": int(index), "broken": one_line(error)})
        return {"result": [json.dumps(result) for result in results]}


def load_generator(settings: WorkerSettings) -> ImageGenerator:
    """Load the pipeline from local files and fix its settings. Only safetensors are accepted, never
    pickles."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

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
    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        # One generator per image, on the CPU: an image's noise depends neither on its batch nor on the
        # device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images: list[Image.Image] = pipeline(
            prompt=list(prompts),
            width=settings.width,
            height=settings.height,
            generator=generators,
            output_type="pil",
            **settings.pipeline_kwargs,
        ).images
        if len(images) != len(prompts):
            raise RuntimeError(f"the pipeline returned {len(images)} images for {len(prompts)} prompts")
        return images

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


def make_batch(
    rows: Batch, generate: ImageGenerator, settings: WorkerSettings
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Images for some rows. If the batch fails as a whole, each of its rows is tried alone: one bad row
    costs itself."""
    try:
        images = generate([row["prompt"] for row in rows], [row["seed"] for row in rows])
        return [_corpus_row(row, image, settings) for row, image in zip(rows, images, strict=True)], []
    except Exception as error:
        if len(rows) == 1 and settings.max_attempts <= 1:
            return [], [_failure(rows[0], error, 1)]
    made, failures = [], []
    for row in rows:
        for attempt in range(2, max(settings.max_attempts, 2) + 1):
            try:
                made.append(_corpus_row(row, generate([row["prompt"]], [row["seed"]])[0], settings))
                break
            except Exception as error:
                last = _failure(row, error, attempt)
        else:
            failures.append(last)
    return made, failures


def _failure(row: Mapping[str, Any], error: Exception, attempts: int) -> Failure:
    return Failure(id=row["id"], seed=row["seed"], error=one_line(error), attempts=attempts)


def _corpus_row(row: Mapping[str, Any], image: Image.Image, settings: WorkerSettings) -> dict[str, Any]:
    content = encode_image(image.convert("RGB"), settings.image_format)
    suffix = {"png": "png", "jpeg": "jpg"}[settings.image_format]
    made = {"bytes": content, "path": f"{row['id']}.{suffix}"}
    size = {"width": image.width, "height": image.height}
    return {**row, **size, "image": made, "source_model": settings.source_model}

"""Prompts x seeds -> images -> corpus (sec. 3.2, "Image Synthesis"): Ray Data actors around a diffusers
pipeline.

The unit of work is the shard. Which rows a shard holds, and each row's seed, follow from the prompts and the
settings alone, so any worker can make any shard, finished shards are skipped, and an interrupted run that is
started again ends with the same bytes as one that ran through. Ray is the executor only: what is done is
read from the disk.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from l2p_run.devices import DTYPES
from l2p_run.errors import UserError
from l2p_run.settings import Range, check_settings, check_value, convert, setting
from l2p_run.sizes import Size

from l2p_data.cluster import RayShare
from l2p_data.corpus.files import location, make_directory, raised_as, read_json
from l2p_data.corpus.identity import digest_of, model_fingerprint
from l2p_data.corpus.manifest import Failure, Manifest, Shard
from l2p_data.errors import DataError, checks
from l2p_data.filters.filtering import kept
from l2p_data.models import local_directory
from l2p_data.prompts.records import check_prompts
from l2p_data.synthesis.checks import CheckSettings
from l2p_data.synthesis.executor import run_here, run_on_ray
from l2p_data.synthesis.ledger import claim, finished_shards, release, remove_partial_files
from l2p_data.synthesis.shard_plan import ShardPlan
from l2p_data.synthesis.worker import WorkerSettings

LARGEST_SIDE = 16_384
"""px, of an image to be made: 4 times a 4K picture's."""
PIPELINE_RANGES: Mapping[str, Range] = {
    "num_inference_steps": Range(ge=1, le=10_000),
    "max_sequence_length": Range(ge=1, le=1_000_000),
    "num_images_per_prompt": Range(ge=1, le=1),  # one row, one image; more come from seeds_per_prompt
}
"""Of pipeline arguments whose meaning is the same everywhere. All numbers must be finite."""
OF_THE_SYNTHESIS = ("prompt", "width", "height", "generator", "output_type", "return_dict")
"""Arguments of a pipeline that follow from the row, or that the worker reads the answer by."""


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How prompts become images. The paper: 10k prompts, 2 seeds each, 1024 px, Z-Image-Turbo (sec. 4.1)."""

    model: (
        str | Path
    )  # diffusers text-to-image directory, or the id of a model in the local Hugging Face cache
    output: str | Path  # corpus directory
    seeds_per_prompt: int = setting(2, ge=1, le=100_000)  # images per prompt
    width: int = setting(1024, ge=1, le=LARGEST_SIDE)  # px
    height: int = setting(1024, ge=1, le=LARGEST_SIDE)  # px
    # (width, height) px: each image gets one of these sizes instead
    buckets: Sequence[tuple[int, int]] = setting((), ge=1, le=LARGEST_SIDE)
    batch_size: int = setting(8, ge=1, le=65_536)  # images per pipeline call
    # images per Parquet file; what a crash can cost at most, per worker
    rows_per_shard: int = setting(64, ge=1, le=1_000_000)
    # None: one per GPU, or as many as the CPUs hold; 0: this process, without Ray
    workers: int | None = setting(None, ge=0, le=65_536)
    threads_per_worker: int = setting(1, ge=1, le=65_536)  # of torch, on the CPU
    # None: 1 if the Ray cluster has GPUs, else 0; fractions share a GPU
    gpus_per_worker: float | None = setting(None, ge=0, le=1024)
    worker_resources: Mapping[str, float] = setting(dict, ge=0)  # custom ones of the Ray cluster
    dtype: str = (
        "auto"  # float32, bfloat16, float16; auto: bfloat16 where the device computes in it, else float32
    )
    cpu_offload: bool = (
        False  # text encoder, transformer and VAE are on the GPU by turns: slower, less memory
    )
    image_format: str = "png"  # or "jpeg"
    max_attempts: int = setting(2, ge=1, le=1000)  # per image
    # bits; images with less are listed as failed (photographs: 6 to 7.5)
    min_entropy: float = setting(0.0, ge=0, le=8)
    checks: CheckSettings = field(default_factory=CheckSettings)  # safety classifier, OCR of rendered text
    ray_address: str | None = None  # a running cluster; None: Ray on this machine only
    pipeline_kwargs: Mapping[str, Any] = field(
        default_factory=dict
    )  # num_inference_steps, guidance_scale, ...

    def __post_init__(self) -> None:
        with raised_as(DataError):
            check_settings(self)
            self._check_pipeline_arguments()
        if self.gpus_per_worker and self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise DataError(
                f"gpus_per_worker is {self.gpus_per_worker:g}; above 1 it must be whole, as Ray shares out "
                "whole GPUs"
            )
        if self.dtype not in ("auto", *DTYPES):
            raise DataError(f"dtype {self.dtype!r} is not known; use auto, {', '.join(DTYPES)}")
        if self.image_format not in ("png", "jpeg"):
            raise DataError(f"image_format {self.image_format!r} is not known; use png or jpeg")

    def _check_pipeline_arguments(self) -> None:
        """Raise `UserError` for arguments that no pipeline takes, or that each image gets from here."""
        for name, value in self.pipeline_kwargs.items():
            if not isinstance(name, str):
                raise UserError(f"pipeline_kwargs has the key {name!r}; names of arguments are texts")
            if name in OF_THE_SYNTHESIS:
                raise UserError(
                    f"pipeline_kwargs.{name} is set for each image by the synthesis; leave it out"
                )
            if name in PIPELINE_RANGES and value is not None:
                check_value(convert(value, int, name), PIPELINE_RANGES[name], name)
        if (guidance := self.pipeline_kwargs.get("guidance_scale")) is not None:
            convert(guidance, float, "guidance_scale")


@dataclass(frozen=True, kw_only=True)
class SynthesisProgress:
    """State of a running synthesis, given to `on_progress` at the start and after each shard."""

    images: int  # finished, earlier runs included
    failed: int
    total: int
    shards: int  # finished
    total_shards: int


@checks
def synthesize(
    prompts: pl.DataFrame,
    config: SynthesisConfig,
    on_progress: Callable[[SynthesisProgress], None] | None = None,
) -> Manifest:
    """Make `config.seeds_per_prompt` images of each kept prompt; returns the finished corpus's manifest.

    Running it again with the same arguments continues where it stopped, or returns at once if all is done.
    Rows that failed are counted and listed in the manifest, with their errors. Nothing is drawn at random:
    the seed of an image is a hash of its prompt's id and its number.

    Args:
        prompts: prompt records; with a `status` column, only rows that are "keep".
        config: see `SynthesisConfig`.
        on_progress: called from this process.

    Raises:
        DataError: a missing model, an unwritable or foreign output directory, no prompt, a pipeline that
        cannot run.
    """
    check_prompts(prompts)
    corpus = location(config.output).absolute()
    model = resolve_model(config.model)
    shards = plan_shards(kept(prompts), config)
    make_directory(corpus)
    settings = claim(corpus, _settings(config, model, shards), model)
    try:
        entries = _all_made(config, model, corpus, settings["source_model"], shards, on_progress)
    except BaseException:
        release(corpus)
        raise
    manifest = Manifest(
        shards=tuple(
            Shard(**entries[index]["file"]) for index in sorted(entries) if "file" in entries[index]
        ),
        failures=tuple(Failure(**row) for index in sorted(entries) for row in entries[index]["failures"]),
        settings=settings,
        cut_prompts=_cut_prompts(entries),
    )
    manifest.save(corpus)
    return manifest


def _cut_prompts(entries: Mapping[int, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return for each prompt that was longer than the text encoder takes, the first words that it lost."""
    cut: dict[str, str] = {}
    for index in sorted(entries):
        cut |= entries[index].get("cut_prompts", {})
    return tuple(cut.values())


def _all_made(
    config: SynthesisConfig,
    model: Path,
    corpus: Path,
    source_model: str,
    shards: ShardPlan,
    on_progress: Callable[[SynthesisProgress], None] | None,
) -> dict[int, dict[str, Any]]:
    """Return the ledger entries of all shards, by index, once those that are missing are made."""
    entries = finished_shards(corpus, len(shards))
    progress = _Reporter(shards, entries, on_progress)
    missing = [index for index in range(len(shards)) if index not in entries]
    if missing:
        remove_partial_files(corpus)
        for entry in _made(config, model, corpus, source_model, shards, missing):
            entries[entry["shard"]] = entry
            if not any("file" in known for known in entries.values()):
                cause = entry["failures"][0]["error"]
                raise DataError(f"{config.model} failed on every image of the first shard: {cause}")
            progress.add(entry)
    return entries


def _settings(config: SynthesisConfig, model: Path, shards: ShardPlan) -> dict[str, Any]:
    """Return all that decides the images. Options that are off are left out: what this package learns later
    does not part it from corpora that were begun before."""
    try:
        json.dumps(dict(config.pipeline_kwargs))
    except TypeError as error:
        raise DataError(
            f"pipeline_kwargs {dict(config.pipeline_kwargs)} must be plain numbers and texts"
        ) from error
    settings: dict[str, Any] = {
        "source_model": f"{Path(config.model).name}@{model_fingerprint(model)}",
        "seeds_per_prompt": config.seeds_per_prompt,
        "width": config.width,
        "height": config.height,
        "batch_size": config.batch_size,  # last bits of an image can depend on its batch
        "rows_per_shard": config.rows_per_shard,
        "dtype": config.dtype,
        "image_format": config.image_format,
        "min_entropy": config.min_entropy,
        "pipeline_kwargs": dict(config.pipeline_kwargs),
        "rows": digest_of(shards.ids()).hex()[:16],
    }
    if config.buckets:
        settings["buckets"] = [list(size) for size in config.buckets]
    if config.checks != CheckSettings():
        settings["checks"] = asdict(config.checks)
    return settings


def _made(
    config: SynthesisConfig,
    model: Path,
    corpus: Path,
    source_model: str,
    shards: ShardPlan,
    missing: list[int],
) -> Iterator[dict[str, Any]]:
    """Yield ledger entries of the missing shards as they get done, on Ray or here.

    Raises:
        DataError: the pipeline cannot work at all.
    """
    worker = WorkerSettings(
        model=str(model),
        corpus=str(corpus),
        source_model=source_model,
        batch_size=config.batch_size,
        threads=config.threads_per_worker,
        dtype=config.dtype,
        cpu_offload=config.cpu_offload,
        image_format=config.image_format,
        max_attempts=config.max_attempts,
        min_entropy=config.min_entropy,
        checks=config.checks,
        pipeline_kwargs=dict(config.pipeline_kwargs),
    )
    work = ({"shard": index, "rows": json.dumps(shards[index])} for index in missing)
    share = RayShare(
        workers=config.workers,
        threads_per_worker=config.threads_per_worker,
        gpus_per_worker=config.gpus_per_worker,
        resources=config.worker_resources,
        address=config.ray_address,
    )
    run = run_here(work, worker) if config.workers == 0 else run_on_ray(work, worker, share)
    with closing(run):
        for entry in run:
            if "broken" in entry:
                raise DataError(f"cannot make images with {config.model}: {entry['broken']}")
            yield entry


def plan_shards(prompts: pl.DataFrame, config: SynthesisConfig) -> ShardPlan:
    """Return every row to be made, grouped by shard: a pure function of the prompts and the settings.

    With buckets, the rows of one size stand together.
    """
    sizes = [Size(*one) for one in config.buckets] or [Size(width=config.width, height=config.height)]
    return ShardPlan(prompts, config.seeds_per_prompt, sizes, config.rows_per_shard)


def resolve_model(model: str | Path) -> Path:
    """Return the directory of a diffusers text-to-image model; see `models.local_directory`."""
    path = local_directory(model, "model_index.json", "a diffusers text-to-image pipeline")
    read_json(path / "model_index.json")
    return path


class _Reporter:
    """Counts for `on_progress`, one shard after the other: there may be millions."""

    def __init__(
        self,
        shards: ShardPlan,
        entries: Mapping[int, Mapping[str, Any]],
        on_progress: Callable[[SynthesisProgress], None] | None,
    ) -> None:
        self.on_progress = on_progress
        self.total, self.total_shards = shards.rows, len(shards)
        self.images = self.failed = self.shards = 0
        for entry in entries.values():
            self._count(entry)
        self._report()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Count a shard that is done, and tell."""
        self._count(entry)
        self._report()

    def _count(self, entry: Mapping[str, Any]) -> None:
        self.shards += 1
        self.images += entry["file"]["rows"] if "file" in entry else 0
        self.failed += len(entry["failures"])

    def _report(self) -> None:
        if self.on_progress is not None:
            self.on_progress(
                SynthesisProgress(
                    images=self.images,
                    failed=self.failed,
                    total=self.total,
                    shards=self.shards,
                    total_shards=self.total_shards,
                )
            )

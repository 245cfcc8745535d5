"""Prompts x seeds -> images -> corpus (sec. 3.2, "Image Synthesis"): Ray Data actors around a diffusers
pipeline.

The unit of work is the shard. Which rows a shard holds, and each row's seed, follow from the prompts and the
settings alone, so any worker can make any shard, finished shards are skipped, and an interrupted run that is
started again ends with the same bytes as one that ran through. Ray is the executor only: what is done is
read from the disk.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from l2p_run.sizes import Size

from l2p_data.cluster import RayShare
from l2p_data.corpus.files import location, make_directory, read_json
from l2p_data.corpus.identity import digest_of, model_fingerprint
from l2p_data.corpus.manifest import Failure, Manifest, Shard
from l2p_data.errors import DataError, checks
from l2p_data.filters.filtering import kept
from l2p_data.models import local_directory
from l2p_data.prompts.records import check_prompts
from l2p_data.synthesis.checks import CheckSettings
from l2p_data.synthesis.config import SynthesisConfig
from l2p_data.synthesis.executor import run_here, run_on_ray
from l2p_data.synthesis.ledger import claim, finished_shards, release, remove_partial_files
from l2p_data.synthesis.shard_plan import ShardPlan
from l2p_data.synthesis.worker import WorkerSettings


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

"""Prompts x seeds -> images -> corpus (sec. 3.2, "Image Synthesis"): Ray Data actors around a diffusers
pipeline.

The unit of work is the shard. Which rows a shard holds, and each row's seed, follow from the prompts and the
settings alone, so any worker can make any shard, finished shards are skipped, and an interrupted run that is
started again ends with the same bytes as one that ran through. Ray is the executor only: what is done is
read from the disk.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from l2p_data.dataset import Failure, Manifest, Shard, shard_name
from l2p_data.errors import DataError
from l2p_data.executor import RayShare, run_here, run_on_ray
from l2p_data.files import TEMPORARY_SUFFIX, make_directory, read_json, write_json
from l2p_data.filters import kept
from l2p_data.identity import digest, image_seed, model_fingerprint
from l2p_data.prompts import check_prompts
from l2p_data.worker import WorkerSettings, ledger_path

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How prompts become images. The paper: 10k prompts, 2 seeds each, 1024 px, Z-Image-Turbo (sec. 4.1)."""

    model: (
        str | Path
    )  # diffusers text-to-image directory, or the id of a model in the local Hugging Face cache
    output: str | Path  # corpus directory
    seeds_per_prompt: int = 2  # images per prompt
    width: int = 1024  # px
    height: int = 1024  # px
    batch_size: int = 8  # images per pipeline call
    rows_per_shard: int = 64  # images per Parquet file; what a crash can cost at most, per worker
    workers: int | None = None  # None: one per GPU, or as many as the CPUs hold; 0: this process, without Ray
    threads_per_worker: int = 1  # of torch, on the CPU
    gpus_per_worker: float | None = None  # None: 1 if the Ray cluster has GPUs, else 0; fractions share a GPU
    dtype: str = (
        "auto"  # float32, bfloat16, float16; auto: bfloat16 where the device computes in it, else float32
    )
    image_format: str = "png"  # or "jpeg"
    max_attempts: int = 2  # per image
    min_entropy: float = 0.0  # bits; images with less are listed as failed (photographs: 6 to 7.5)
    ray_address: str | None = None  # a running cluster; None: Ray on this machine only
    pipeline_kwargs: Mapping[str, Any] = field(
        default_factory=dict
    )  # num_inference_steps, guidance_scale, ...

    def __post_init__(self) -> None:
        for name in (
            "seeds_per_prompt",
            "width",
            "height",
            "batch_size",
            "rows_per_shard",
            "threads_per_worker",
        ):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.workers is not None and self.workers < 0:
            raise DataError(
                f"workers is {self.workers}; it must be at least 0, or absent to decide by the machine"
            )
        if self.dtype not in ("auto", *_DTYPES):
            raise DataError(f"dtype {self.dtype!r} is not known; use auto, {', '.join(_DTYPES)}")
        if self.image_format not in ("png", "jpeg"):
            raise DataError(f"image_format {self.image_format!r} is not known; use png or jpeg")


@dataclass(frozen=True, kw_only=True)
class SynthesisProgress:
    """State of a running synthesis, given to `on_progress` at the start and after each shard."""

    images: int  # finished, earlier runs included
    failed: int
    total: int
    shards: int  # finished
    total_shards: int


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
    corpus = Path(config.output).absolute()
    model = resolve_model(config.model)
    shards = plan_shards(kept(prompts), config)
    make_directory(corpus)
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
        "rows": digest(*(row["id"] for rows in shards for row in rows)).hex()[:16],
    }
    _claim(corpus, settings)
    entries = finished_shards(corpus, len(shards))
    progress = _Reporter(shards, entries, on_progress)
    missing = [index for index in range(len(shards)) if index not in entries]
    if missing:
        _remove_partial_files(corpus)
        worker = WorkerSettings(
            model=str(model),
            corpus=str(corpus),
            source_model=settings["source_model"],
            width=config.width,
            height=config.height,
            batch_size=config.batch_size,
            threads=config.threads_per_worker,
            dtype=config.dtype,
            image_format=config.image_format,
            max_attempts=config.max_attempts,
            min_entropy=config.min_entropy,
            pipeline_kwargs=dict(config.pipeline_kwargs),
        )
        work = [{"shard": index, "rows": json.dumps(shards[index])} for index in missing]
        share = RayShare(
            workers=config.workers,
            threads_per_worker=config.threads_per_worker,
            gpus_per_worker=config.gpus_per_worker,
            address=config.ray_address,
        )
        run = run_here(work, worker) if config.workers == 0 else run_on_ray(work, worker, share)
        with closing(run):
            for entry in run:
                if "broken" in entry:
                    raise DataError(f"cannot make images with {config.model}: {entry['broken']}")
                entries[entry["shard"]] = entry
                if not any("file" in known for known in entries.values()):
                    cause = entry["failures"][0]["error"]
                    raise DataError(f"{config.model} failed on every image of the first shard: {cause}")
                progress.report()
    manifest = Manifest(
        shards=tuple(
            Shard(**entries[index]["file"]) for index in sorted(entries) if "file" in entries[index]
        ),
        failures=tuple(Failure(**row) for index in sorted(entries) for row in entries[index]["failures"]),
        settings=settings,
    )
    manifest.save(corpus)
    return manifest


def plan_shards(prompts: pl.DataFrame, config: SynthesisConfig) -> list[list[dict[str, Any]]]:
    """Every row to be made, grouped by shard: a pure function of the prompts and the settings."""
    columns = ["prompt", "language", "category", "subclass", "superclass", "created_by"]
    rows = [
        {
            "id": f"{record['id']}-{index:02d}",
            **{name: record[name] for name in columns},
            "seed": image_seed(record["id"], index),
        }
        for record in prompts.select("id", *columns).iter_rows(named=True)
        for index in range(config.seeds_per_prompt)
    ]
    size = config.rows_per_shard
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def finished_shards(corpus: Path, count: int) -> dict[int, dict[str, Any]]:
    """Ledger entries of the shards that are done, by index.

    Raises:
        DataError: a finished shard's file is not what its ledger entry says.
    """
    entries = {}
    for index in range(count):
        path = ledger_path(corpus, index)
        file = corpus / shard_name(index)
        if not path.is_file() or not file.is_file():
            continue
        entry = read_json(path)
        if file.stat().st_size != entry["file"]["bytes"]:
            raise DataError(
                f"shard {file} has {file.stat().st_size} bytes, {entry['file']['bytes']} were written: "
                "it is truncated or was changed; delete it and run the synthesis again"
            )
        entries[index] = entry
    return entries


def resolve_model(model: str | Path) -> Path:
    """The directory of a model: a path, or the id of one in the local Hugging Face cache (nothing is
    downloaded).

    Raises:
        DataError: there is no diffusers pipeline there.
    """
    path = Path(model)
    if not path.exists() and str(model).count("/") == 1 and not str(model).startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(snapshot_download(str(model), local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise DataError(
                f"model {model} is neither a directory nor in the local Hugging Face cache; download it first"
            ) from error
    if not path.is_dir():
        raise DataError(f"model directory {model} does not exist")
    index = path / "model_index.json"
    if not index.is_file():
        raise DataError(
            f"{model} has no model_index.json; wanted a diffusers text-to-image pipeline directory"
        )
    read_json(index)
    return path.absolute()


class _Reporter:
    """Counts for `on_progress`."""

    def __init__(
        self,
        shards: list[list[dict[str, Any]]],
        entries: dict[int, dict[str, Any]],
        on_progress: Callable[[SynthesisProgress], None] | None,
    ) -> None:
        self.shards, self.entries, self.on_progress = shards, entries, on_progress
        self.total = sum(len(rows) for rows in shards)
        self.report()

    def report(self) -> None:
        if self.on_progress is not None:
            done = list(self.entries.values())
            self.on_progress(
                SynthesisProgress(
                    images=sum(entry["file"]["rows"] for entry in done if "file" in entry),
                    failed=sum(len(entry["failures"]) for entry in done),
                    total=self.total,
                    shards=len(done),
                    total_shards=len(self.shards),
                )
            )


def _claim(corpus: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings in the corpus directory, or check that they are the ones it was begun with."""
    path = corpus / "ledger" / "settings.json"
    if path.is_file():
        before = read_json(path)
        now = json.loads(json.dumps(settings))
        if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
            differences = "; ".join(f"{key}: was {before.get(key)}, now {now.get(key)}" for key in changed)
            raise DataError(
                f"{corpus} was begun with other settings ({differences}); choose another directory"
            )
    elif next(corpus.glob("*.parquet"), None) is not None:
        raise DataError(f"{corpus} holds Parquet files of another origin; choose another directory")
    else:
        write_json(path, settings)


def _remove_partial_files(corpus: Path) -> None:
    for pattern in (f".*{TEMPORARY_SUFFIX}", f"ledger/.*{TEMPORARY_SUFFIX}", "ledger/*.attempts"):
        for path in corpus.glob(pattern):
            path.unlink(missing_ok=True)

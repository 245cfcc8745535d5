"""`--rehearse`: every stage of a config for real, on random weights and a handful of items, measured.

All of it lies in one folder beside the run's own, which is removed at the end:

    RUN-rehearsal/  source/     the source's classes, shapes and files, with random values
                    judges/     GenEval's two models, likewise, where the config judges with them
                    run/        a run directory: the config's own stages
                    rehearsal.json   what was measured so far

Run the same command again and it goes on where it stopped.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l2p_plan.rehearsal.inputs import first_of_each_tag, prompts, write_judges, write_source
from l2p_plan.rehearsal.measuring import Recorder, size_of, step_seconds
from l2p_plan.rehearsal.table import Measured, Table, make_table, planned_disk
from l2p_run import hashes
from l2p_run.places import shorten, write_json, write_text
from l2p_run.progress import Display
from l2p_run.stages import read_marker
from l2p_run.usage import DeviceMeter

from l2p_transfer.config import Config, resolve_processes
from l2p_transfer.errors import TransferError
from l2p_transfer.paths import RunPaths
from l2p_transfer.planning.described import describe
from l2p_transfer.planning.inputs import check_inputs
from l2p_transfer.planning.plan import make_plan
from l2p_transfer.runner import execute
from l2p_transfer.stages import STAGES

SUFFIX = "-rehearsal"
STEPS, HALF = 4, 2  # of training; the run is resumed from the checkpoint at HALF
PAINT_STEPS = 2  # of sampling
BATCHES = 2  # that each worker paints: the second is quicker than the first
ROOM = 1.1  # of the disk's, over what is counted


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `--rehearse` may be told."""

    depth: int | None = None  # blocks of each kind; None: all
    size: int | None = None  # px of a square image; None: the config's own
    keep: bool = False  # the folder, at the end


def folder_of(config: Config) -> Path:
    """Where the rehearsal of a config lies."""
    return config.run.output.with_name(config.run.output.name + SUFFIX)


def rehearse(config: Config, options: Options, display: Display, command: Sequence[str]) -> Table:
    """Run every stage on random weights, and lay what was measured beside the plan.

    The table is also kept as RUN-rehearsal.json, beside the folder that is removed.

    Raises:
        TransferError: the disk is too small, or the folder holds the rehearsal of another config.
    """
    folder = folder_of(config)
    small = small_config(config, options)
    with DeviceMeter() as meter:
        recorder = Recorder(display, folder / "rehearsal.json", meter)
        _claim(recorder, config, options)
        _check_disk(config, small, options)
        _prepare(config, small, options.depth, recorder)
        check_inputs(small)
        execute(small, recorder, command=command)
        _resume(small, recorder)
    table = _table(config, small, recorder.notes, _disk(folder))
    write_json(folder.with_name(f"{folder.name}.json"), table.to_row())
    if not options.keep:
        shutil.rmtree(folder)
    return table


def small_config(config: Config, options: Options) -> Config:
    """The config whose stages are run: the same settings on a handful of items, in the rehearsal's folder."""
    folder = folder_of(config)
    run = folder / "run"
    painting = resolve_processes(config) if config.images.workers is None else max(1, config.images.workers)
    images = BATCHES * config.images.batch_size * painting
    sizes: dict[str, Any] = {}
    if options.size:
        sizes = {"width": options.size, "height": options.size}
    train = config.train
    judges = folder / "judges"
    coco = config.evaluate.detector == "coco"
    return replace(
        config,
        run=replace(config.run, output=run, storage=None),
        source=replace(
            config.source,
            model=folder / "source",
            num_inference_steps=min(PAINT_STEPS, config.source.num_inference_steps),
        ),
        prompts=replace(
            config.prompts,
            engine="grammar" if config.prompts.engine == "grammar" else "file",
            file=folder / "prompts.txt",
            count=max(HALF, -(-images // config.images.seeds_per_prompt)),
            audit=False,
        ),
        images=replace(
            config.images,
            rows_per_shard=config.images.batch_size,
            buckets=None if options.size else config.images.buckets,
            **sizes,
        ),
        train=replace(
            train,
            model=run / "initial",
            corpus=run / "corpus",
            output=run / "train",
            mirror=None,
            steps=STEPS,
            warmup_steps=min(train.warmup_steps, 1),
            resolution=options.size and train.resolution and options.size,
            checkpoint_every=HALF,
            keep_checkpoints=2,
            log_every=1,
            sample_every=STEPS,
            sample_count=min(1, train.sample_count),
            sample_prompts=(),
            sample_steps=PAINT_STEPS,
            validate_every=0,
            validation_images=min(train.validation_images, 2),
        ),
        evaluate=replace(
            config.evaluate,
            metadata=folder / "metadata.jsonl",
            detector_model=judges / "detector" if coco else config.evaluate.detector_model,
            color_model=judges / "clip" if coco else config.evaluate.color_model,
            images_per_prompt=1,
            num_inference_steps=min(PAINT_STEPS, config.evaluate.num_inference_steps),
            **sizes,
        ),
    )


def _prepare(config: Config, small: Config, depth: int | None, recorder: Recorder) -> None:
    """Write the source, the judges, the prompts and GenEval's rows."""
    started, judged = time.perf_counter(), small.evaluate
    known = config.source.model if config.source.model.is_dir() else None
    if not known and not config.source.family:
        raise TransferError(
            f"source.model {shorten(config.source.model)} does not exist, and source.family does not say what"
            ' it would be; give one of them, for example family = "z-image"'
        )
    recorder.display.start(0, len(STAGES), "A source of random weights")
    written = write_source(
        small.source.model,
        like=known,
        family=config.source.family,
        depth=depth,
        on_progress=lambda done, total: recorder.display.progress(done / 1e9, total / 1e9, "GB"),
    )
    recorder.display.finish(f"{written / 1e9:,.2f} GB", time.perf_counter() - started)
    if "source" not in recorder.notes:
        recorder.note("source", seconds=time.perf_counter() - started, bytes=written)
    if judged.detector == "coco":
        assert judged.detector_model is not None and judged.color_model is not None
        write_judges(judged.detector_model, judged.color_model)
    assert small.prompts.file is not None
    write_text(small.prompts.file, "\n".join(_prompts(config, small.prompts.count)) + "\n")
    write_text(judged.metadata, "\n".join(first_of_each_tag(config.evaluate.metadata)) + "\n")


def _prompts(config: Config, count: int) -> list[str]:
    """The config's own first prompts if they are there, else ours, in variants."""
    if config.prompts.engine == "file" and config.prompts.file and config.prompts.file.is_file():
        from l2p_data.prompt_settings import prompts_of_file

        return [" ".join(text.split()) for text in prompts_of_file(config.prompts.file)["prompt"].head(count)]
    return prompts(count)


def _claim(recorder: Recorder, config: Config, options: Options) -> None:
    """Note whose rehearsal the folder is, or raise if it is another's."""
    tables = config.to_tables()
    own = json.loads(
        json.dumps({"config": tables, "depth": options.depth, "size": options.size}, default=str)
    )
    known = recorder.notes.get("of")
    if known is not None and known != own:
        where = shorten(recorder.path.parent)
        raise TransferError(f"{where} holds a rehearsal with other settings; remove it, or restore them")
    folder = recorder.path.parent
    if known is None and folder.is_dir() and any(folder.iterdir()):
        raise TransferError(f"{shorten(folder)} is not empty and holds no rehearsal; move it away")
    recorder.notes["of"] = own
    write_json(recorder.path, recorder.notes)


def _check_disk(config: Config, small: Config, options: Options) -> None:
    """Raise unless there is room for what the rehearsal will write."""
    folder = folder_of(config)
    there = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    judges = small.evaluate.detector == "coco"
    needed = planned_disk(describe(config).source, depth=options.depth, judges=judges) * ROOM - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TransferError(
            f"the rehearsal needs {needed / 1e9:,.1f} GB in {shorten(folder)}, and {free / 1e9:,.1f} GB are"
            " free; free some, give another run.output, or rehearse fewer blocks with --rehearse-depth 4"
        )


def _resume(small: Config, recorder: Recorder) -> None:
    """Take the last steps back and resume from the checkpoint before them: are the weights the same?"""
    from l2p_train.run.launcher import launch

    if "resume" in recorder.notes:
        return
    train = small.train
    output, started = Path(train.output), time.perf_counter()
    weights = output / "model" / "transformer"
    if "weights" not in recorder.notes:
        recorder.note("weights", sha256=_sha256(weights))
    shutil.rmtree(output / "checkpoints" / f"step-{STEPS:06d}", ignore_errors=True)
    (output / "result.json").unlink(missing_ok=True)
    recorder.display.start(len(STAGES) + 1, len(STAGES) + 1, "Resuming the training")
    launch(train, processes=resolve_processes(small))
    same = _sha256(weights) == recorder.notes["weights"]["sha256"]
    seconds = time.perf_counter() - started
    recorder.note("resume", seconds=seconds, same=same)
    recorder.display.finish("the same weights" if same else "OTHER weights", seconds)


def _sha256(folder: Path) -> dict[str, str]:
    return {path.name: hashes.of_file(path) for path in sorted(folder.glob("*.safetensors"))}


def _disk(folder: Path) -> Mapping[str, int]:
    """Bytes of what the plan counts, each file once."""
    run = RunPaths(folder / "run")
    steps = [path for path in (run.train / "checkpoints").glob("step-*") if path.is_dir()]
    return {
        "source": size_of(folder / "source"),
        "corpus": size_of(run.corpus),
        "initial and final model": size_of(run.initial) + size_of(run.train / "model"),
        "a checkpoint": max((size_of(path) for path in steps), default=0),
        "text embeddings": size_of(run.train / "conditioning"),
    }


def _table(config: Config, small: Config, notes: Mapping[str, Any], disk: Mapping[str, int]) -> Table:
    """What was measured beside the plans of the rehearsal and of the whole run."""
    from l2p_eval.geneval import read_metadata

    little, whole = make_plan(small).model, make_plan(config).model
    assert little is not None and whole is not None
    measured = Measured(
        stages=list(_stages(small, notes)),
        disk=disk,
        evaluation_prompts=len(read_metadata(small.evaluate.metadata)),
        resumed_alike=notes["resume"]["same"],
    )
    return make_table(little, whole, measured, train=config.train, output=config.run.output)


def _stages(small: Config, notes: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Name, marker and notes of each stage that ran."""
    for stage in STAGES:
        noted = dict(notes.get(stage.title, {}))
        if stage.name == "training":
            noted["step_seconds"] = step_seconds(Path(small.train.output) / "metrics.jsonl")
        if marker := read_marker(small.run.output, stage.name):
            yield stage.name, marker, noted

"""`--rehearse`: every stage of a config for real, on random weights and a handful of items, measured.

All of it lies in one folder beside the run's own, which is removed at the end:

    RUN-rehearsal/  source/     the source's classes, shapes and files, with random values
                    judges/     GenEval's two models, likewise, where the config judges with them
                    run/        a run directory: the config's own stages
                    rehearsal.json   what was measured so far

Run the same command again and it goes on where it stopped.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l2p_plan.rehearsal.inputs import prompts
from l2p_plan.rehearsal.measuring import Recorder
from l2p_plan.rehearsal.session import Rehearsal
from l2p_plan.rehearsal.table import Table
from l2p_run.places import write_json
from l2p_run.progress import Display
from l2p_run.usage import DeviceMeter

from l2p_transfer.config import Config, resolve_processes
from l2p_transfer.planning.described import describe
from l2p_transfer.planning.inputs import check_inputs
from l2p_transfer.runner import execute
from l2p_transfer.stages import STAGES

SUFFIX = "-rehearsal"
STEPS, HALF = 4, 2  # of training; the run is resumed from the checkpoint at HALF
PAINT_STEPS = 2  # of sampling
BATCHES = 2  # that each worker paints: the second is quicker than the first


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `--rehearse` may be told."""

    depth: int | None = None  # blocks of each kind; None: all
    size: int | None = None  # px of a square image; None: the config's own
    keep: bool = False  # the folder, at the end


def folder_of(config: Config) -> Path:
    """Return where the rehearsal of a config lies."""
    return config.run.output.with_name(config.run.output.name + SUFFIX)


def rehearse(config: Config, options: Options, display: Display, command: Sequence[str]) -> Table:
    """Run every stage on random weights, and lay what was measured beside the plan.

    The table is also kept as RUN-rehearsal.json, beside the folder that is removed.

    Raises:
        PlanError: the disk is too small, or the folder holds the rehearsal of another config.
    """
    folder = folder_of(config)
    small = small_config(config, options)
    rehearsal = Rehearsal(
        folder=folder,
        whole=describe(config),
        small=describe(small),
        output=config.run.output,
        settings={"config": config.to_tables(), "depth": options.depth, "size": options.size},
        stages=[(stage.name, stage.title) for stage in STAGES],
        depth=options.depth,
    )
    with DeviceMeter() as meter:
        recorder = Recorder(display, rehearsal.notes, meter)
        rehearsal.claim(recorder)
        rehearsal.prepare(recorder, _prompts(config, small.prompts.count))
        check_inputs(small)
        rehearsal.check_memory()
        execute(small, recorder, command=command)
        rehearsal.resume(recorder)
    table = rehearsal.table(recorder)
    write_json(folder.with_name(f"{folder.name}.json"), table.to_row())
    if not options.keep:
        shutil.rmtree(folder)
    return table


def small_config(config: Config, options: Options) -> Config:
    """Return the config whose stages are run: the same settings on a handful of items, in the rehearsal's
    folder.
    """
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


def _prompts(config: Config, count: int) -> list[str]:
    """Return the config's own first prompts if they are there, else ours, in variants."""
    if config.prompts.engine == "file" and config.prompts.file and config.prompts.file.is_file():
        from l2p_data.prompt_settings import prompts_of_file

        return [" ".join(text.split()) for text in prompts_of_file(config.prompts.file)["prompt"].head(count)]
    return prompts(count)

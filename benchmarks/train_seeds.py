"""Table 1, and how much of it is the training's luck: one transfer's model trained again from several seeds.

    uv run l2p-transfer configs/mini.toml
    uv run python benchmarks/train_seeds.py runs/mini --publish docs/results

Takes the images and the start of a transfer's run, which needs to have come as far as its surgery, and
trains from there once for each seed: of the order of the images, the noise and the noise levels. Every model
paints the 120 evaluation prompts with several sets of seeds, as the run's config samples; its pictures are
scored by GenEval and held against its source's of the same set. Says mean and deviation over trainings
beside the source's over sets. Run again to resume; several commands may share one RUN and --output if each
has --only another seed, and the one without --only then adds up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from l2p_arch.polish import configured_polish
from l2p_eval.geneval import GenEvalPrompt, read_metadata
from l2p_eval.layout import image_path
from l2p_eval.metrics.features import load_extractor
from l2p_eval.painting import Pictures
from l2p_eval.report.pictures import grid_sheet
from l2p_eval.scores import frechet, geneval, patch_grid
from l2p_mini.detector import ExactDetector
from l2p_run.command import number, seed_argument
from l2p_run.places import read_json
from l2p_transfer.config import Config, load_config
from painted import finish, model_of, parser_of, pictures_of, spread

SHOWN = 8  # prompts of the sheet


def trained(config: Config, seed: int, output: Path, processes: int) -> Path:
    """Return the model that the run's start becomes with another seed; a training that began goes on."""
    from l2p_train.run.launcher import launch

    settings = replace(config.train, seed=seed, output=output / f"seed-{seed}" / "train", sample_every=0)

    def tell(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event["step"] % 100 == 0:
            print(f"seed {seed}: step {event['step']}/{settings.steps}", file=sys.stderr)

    return Path(launch(settings, processes, tell).model)


def judged(
    pictures: Pictures, rows: Sequence[GenEvalPrompt], patch_size: int, source: Pictures | None
) -> dict[str, Any]:
    """Return score, score by task, patch grid and the Frechet distance to the source's pictures of a set."""
    score = geneval(pictures, ExactDetector(), prompts=rows).whole()
    found = {
        "score": score.headline,
        "grid": patch_grid(pictures, patch_size=patch_size).headline,
        "tasks": {tag: score.values[tag] for tag in score.details["scores"]["tags"]},
    }
    if source is not None:
        distance = frechet(pictures, load_extractor("efficientnet-lite0"), reference=source.paths)
        found["frechet"] = distance.headline
    return found


def summed(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the means over sets of each training, and their mean and deviation over trainings."""
    source = models["source"]
    wholes = {name: fmean(one["score"] for one in sets) for name, sets in models.items()}
    seeds = [name for name in models if name != "source"]
    return {
        "source": {
            "score": spread([one["score"] for one in source]),
            "grid": spread([one["grid"] for one in source]),
        },
        "score": spread([wholes[name] for name in seeds], "trainings"),
        "kept": spread([wholes[name] / wholes["source"] for name in seeds], "trainings"),
        "frechet": spread([fmean(one["frechet"] for one in models[name]) for name in seeds], "trainings"),
        "grid": spread([fmean(one["grid"] for one in models[name]) for name in seeds], "trainings"),
        "tasks": {
            tag: spread([fmean(one["tasks"][tag] for one in models[name]) for name in seeds], "trainings")
            for tag in source[0]["tasks"]
        },
        "source's tasks": {
            tag: round(fmean(s["tasks"][tag] for s in source), 4) for tag in source[0]["tasks"]
        },
        "models": {name: list(sets) for name, sets in models.items()},
    }


def arguments() -> argparse.Namespace:
    """Return what the command was given."""
    parser = parser_of(__doc__ or "", sets=4)
    parser.add_argument("run", type=Path, help="a transfer's directory")
    parser.add_argument("--seeds", type=number(int, ge=1), default=5, help="trainings (default: %(default)s)")
    parser.add_argument(
        "--only", type=seed_argument, metavar="SEED", help="train and paint this one, and end"
    )
    parser.add_argument(
        "--processes", type=number(int, ge=1), default=1, help="of each (default: %(default)s)"
    )
    options = parser.parse_args()
    if not (options.run / "initial" / "model_index.json").is_file():
        parser.error(f"{options.run} has no initial/: run l2p-transfer there until its surgery is done")
    return options


def main() -> None:
    """Train, paint, score and print."""
    options = arguments()
    config = load_config(options.run / "config.toml")
    rows = read_metadata(config.evaluate.metadata)
    prompts, output = [row.prompt for row in rows], options.output / f"seeds-{options.run.name}"

    def painted(name: str, directory: Path, sampling: dict[str, Any]) -> list[Pictures]:
        model, folder = model_of(directory, sampling, config.images.width), output / name
        sets = range(options.sets)
        return [pictures_of(name, model, prompts, folder, number=one, batch=40) for one in sets]

    every = {}
    for seed in range(options.seeds) if options.only is None else [options.only]:
        model = trained(config, seed, output, options.processes)
        every[f"seed-{seed}"] = painted(f"seed-{seed}", model, config.l2p_sampling)
    if options.only is not None:
        return
    source = painted("source", config.source.model, config.source.sampling)
    patch = config.surgery.patch_size
    results = {
        "source": [judged(pictures, rows, patch, None) for pictures in source],
        **{
            name: [judged(one, rows, patch, own) for one, own in zip(sets, source, strict=True)]
            for name, sets in every.items()
        },
    }
    shown = list(range(0, len(rows), max(1, len(rows) // SHOWN)))[:SHOWN]
    sheet = [
        (name, [image_path(output / name / "set-0", index, 0) for index in shown])
        for name in ("source", *every)
    ]
    grid_sheet(sheet, side=96).save(options.output / f"seeds-{options.run.name}.png")
    told = {
        "images": options.sets * len(prompts),
        "steps": config.train.steps,
        "sampling": config.l2p_sampling,
        "polish": list(configured_polish(read_json(options.run / "initial/transformer/config.json"))),
    }
    finish(f"seeds-{options.run.name}", told | summed(results), options)


if __name__ == "__main__":
    main()

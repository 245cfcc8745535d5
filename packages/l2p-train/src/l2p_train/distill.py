"""`l2p-train distill MODEL -o OUT --steps 8 4`: a student of few passes, by one command that resumes.

A stage is one training run (distillation.py): the first student imitates MODEL, guided as MODEL is sampled;
each further one imitates the student before it, which needs no second pass any more. A run that is finished
is left as it is, one that was stopped goes on exactly, so the same command again does what is left.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_run.command import Parser, number, out, run_command
from l2p_run.progress import say

STUDENT: dict[str, Any] = {
    "schedule": "cosine",
    "warmup_steps": 20,
    "ema_decay": 0.99,
    "stratified_sigma": True,
}
"""What differs from the trainer's defaults unless it is given."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run: the student's steps (0: its teacher's), the teacher's in each of them, the teacher's
    guidance; in its place the range of those that the student learns."""

    name: str
    steps: int
    substeps: int
    guidance: float
    scales: tuple[float, ...] = ()


def plan_stages(
    steps: Sequence[int], teacher_steps: int, guidance: float, scales: Sequence[float] = ()
) -> list[Stage]:
    """Return the runs that lead from a teacher to students of ever fewer steps.

    Args:
        steps: of the students.
        teacher_steps: of the model to begin with.
        guidance: that the first student learns; 1 or less: none.
        scales: in its place, the lowest and the highest guidance that the students take as a number.

    Raises:
        TrainError: nothing is left to learn, or a number of steps does not divide the one before it.
    """
    from l2p_train.errors import TrainError

    if not steps:
        if guidance <= 1:
            raise TrainError(
                f"the guidance is {guidance:g}, which is off, and no --steps are given: nothing to distil; "
                "give --guidance 2.5, or --steps 8"
            )
        first = 0.0 if scales else guidance
        return [Stage(name="guidance", steps=0, substeps=1, guidance=first, scales=tuple(scales))]
    stages, before, scale, scales = [], teacher_steps, guidance if guidance > 1 else 0.0, tuple(scales)
    for count in steps:
        if before % count or (count == before and scale == 0):
            fitting = [one for one in range(1, before + 1) if before % one == 0 and (scale or one < before)]
            raise TrainError(
                f"--steps {count} is no part of the {before} steps before it; use one of "
                f"{', '.join(map(str, fitting))}, or other --teacher-steps"
            )
        first = 0.0 if scales else scale
        name, substeps = f"steps-{count}", before // count
        stages.append(Stage(name=name, steps=count, substeps=substeps, guidance=first, scales=scales))
        before, scale, scales = count, 0.0, ()
    return stages


def distil(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every stage; return per stage its model, its steps and passes an image, its loss and seconds."""
    from l2p_arch.sampling.painter import find_pixel_model, sampling_defaults

    from l2p_train.errors import TrainError
    from l2p_train.run.launcher import launch

    if options.model.is_file():
        raise TrainError(
            f"{options.model} is a file; give a run of l2p-transfer or a model directory (l2p-arch import "
            "makes one of a single file)"
        )
    found = find_pixel_model(options.model)
    usual = sampling_defaults(found.directory)
    guidance, number = _guidance(options, found.directory, usual.guidance_scale)
    teacher_steps = options.teacher_steps or usual.num_inference_steps
    stages = plan_stages(options.steps, teacher_steps, guidance, options.guidance_range or ())
    shared = {
        **STUDENT,
        "steps": options.updates,
        "corpus": _corpus(options),
        "noise_shift": _shift(options, found.directory, usual.noise_shift),
        **_given(options.set),
    }
    results: list[dict[str, Any]] = []
    teacher = found.directory
    for stage in stages:
        config = stage_config(stage, teacher, options.output / stage.name, shared, number)
        say(f"{stage.name}: teacher {teacher}")
        result = launch(config, options.processes, on_event=_tell)
        teacher = Path(result.model)
        painted = sampling_defaults(teacher).num_inference_steps
        results.append(
            {
                "stage": stage.name,
                "model": result.model,
                "steps": painted,
                "passes": painted + len(_polish(teacher)),
                "loss": result.loss,
                "seconds": result.seconds,
            }
        )
    return results


def _guidance(options: argparse.Namespace, model: Path, usual: float) -> tuple[float, float]:
    """Return the guidance for `plan_stages`, and that of the students' sample pictures."""
    from l2p_arch import ArchError
    from l2p_arch.guidance_input import check_range
    from l2p_run.places import read_json

    from l2p_train.errors import TrainError

    learned = read_json(model / "transformer" / "config.json").get("guidance_range")
    asked = next((name for name in ("guidance", "guidance_range") if getattr(options, name) is not None), "")
    if learned and (asked or not options.steps):
        what = f"--{asked.replace('_', '-')} was given" if asked else "no --steps are given"
        raise TrainError(
            f"{model} takes its guidance as a number already, from {learned[0]:g} to {learned[1]:g}, and its "
            f"students keep that; {what}: give --steps alone"
        )
    if learned:
        return 0.0, usual
    if options.guidance_range is None:
        return (usual if options.guidance is None else options.guidance), 1.0
    if options.guidance is not None:
        raise TrainError(
            f"--guidance {options.guidance:g} is one guidance and --guidance-range many; leave one out"
        )
    try:
        lowest, highest = check_range(options.guidance_range, "--guidance-range")
    except ArchError as error:
        raise TrainError(str(error)) from None
    return highest, min(max(usual, lowest), highest)


def stage_config(
    stage: Stage, teacher: Path, output: Path, shared: dict[str, Any], sample_guidance: float = 1.0
) -> Any:
    """Return the `TrainConfig` of one stage.

    Raises:
        TrainError: a setting of `shared` is none of the trainer's, or has a wrong value.
    """
    from l2p_train.config import config_from_mapping

    own: dict[str, Any] = {
        "model": str(teacher),
        "output": str(output),
        "distil_guidance": float(stage.guidance),
        "distil_guidance_range": [float(scale) for scale in stage.scales],
        "distil_steps": stage.steps,
        "distil_substeps": stage.substeps,
        "sample_guidance": float(sample_guidance),
    }
    usual: dict[str, Any] = {}
    if stage.steps:
        own["sample_steps"] = stage.steps
        usual = {"loss_weighting": _weighting(output)}
    return config_from_mapping({**usual, **shared, **own}, source="--set")


def _weighting(output: Path) -> str:
    """Return "step", or what a run that is there already began with."""
    from l2p_run.places import read_json_if_whole

    begun = read_json_if_whole(output / "train.json") or {}
    return str(begun.get("loss_weighting", "step"))


def _corpus(options: argparse.Namespace) -> str:
    """Return the images that are noised for the teacher: those given, or those that the transfer run was
    made of.
    """
    from l2p_run.places import is_address

    from l2p_train.errors import TrainError

    if options.corpus is not None:
        return options.corpus if is_address(options.corpus) else str(Path(options.corpus))
    beside = options.model / "corpus"
    if not beside.is_dir():
        raise TrainError(
            f"{options.model} is no run of l2p-transfer with a corpus in it; add --corpus with the folder of "
            "one (l2p-data makes them)"
        )
    return str(beside)


def _shift(options: argparse.Namespace, model: Path, usual: float | None) -> float:
    """Return the noise shift of the schedule, on the source's time axis."""
    from l2p_run.places import read_json

    from l2p_train.errors import TrainError

    given = usual if options.shift is None else options.shift
    if given is not None:
        return float(given)
    scheduler = read_json(model / "scheduler" / "scheduler_config.json")
    shift = scheduler.get("shift") or scheduler.get("flow_shift")
    if scheduler.get("use_dynamic_shifting") or shift is None:
        raise TrainError(
            f"{model} has no one noise shift (its scheduler shifts by image size); give the student's, "
            "such as --shift 3"
        )
    return float(shift)


def _given(pairs: Sequence[str]) -> dict[str, Any]:
    from l2p_run.config_file import parse_value

    from l2p_train.errors import TrainError

    fixed = ("model", "output", "corpus", "steps", "noise_shift", "distil_guidance", "distil_steps")
    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or key.strip() in (*fixed, "distil_substeps", "distil_guidance_range"):
            raise TrainError(
                f"--set {pair[:80]} is not of the form KEY=VALUE with a key of the trainer that no option "
                "here stands for, such as learning_rate=1e-4"
            )
        values[key.strip()] = parse_value(value)
    return values


def _polish(model: Path) -> tuple[float, ...]:
    from l2p_arch.polish import configured_polish
    from l2p_run.places import read_json

    return configured_polish(read_json(model / "transformer" / "config.json"))


def _tell(record: dict[str, Any]) -> None:
    if record["event"] == "step":
        say(
            f"step {record['step']}/{record['steps']}  loss {record['loss']:.5f}  "
            f"{record['images_per_second']:.1f} images/s  {record['eta_seconds']:.0f} s left"
        )


def parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="l2p-train distill",
        package="l2p-train",
        description="Distil a finished L2P model into a student of few passes; run again to go on.",
        epilog="Exit codes: 0 done, 1 bug, 2 usage or input, 3 the loss became non-finite, 130/143 "
        "interrupted after a checkpoint.",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a run of l2p-transfer, or a model directory")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="for the stages and their models")
    whole = number(int, ge=1, le=10_000)
    add(
        "--steps",
        type=whole,
        nargs="+",
        default=[],
        metavar="N",
        help="sampling steps of the students, descending: 8, or 8 4 for one after the other; without it only "
        "guidance is distilled",
    )
    corpus = "images with prompts (default: those of the run MODEL), a folder or an address"
    add("--corpus", metavar="DIR", help=corpus)
    guidance = "that the first student learns; 1: none (default: the model's own)"
    add("--guidance", type=number(ge=0, le=1000), metavar="S", help=guidance)
    scales = "learn every guidance between two numbers instead, to be chosen when the student is sampled"
    add("--guidance-range", type=number(ge=1, le=1000), nargs=2, metavar=("LOW", "HIGH"), help=scales)
    teacher = "of the model that is imitated (default: the model's own)"
    add("--teacher-steps", type=whole, metavar="N", help=teacher)
    shift = "noise shift of the schedule (default: the model's own)"
    add("--shift", type=number(gt=0, le=1000), metavar="S", help=shift)
    updates = "optimiser steps of each stage (default 1000)"
    add("--updates", type=number(int, ge=1), default=1000, metavar="N", help=updates)
    add("--processes", type=number(int, ge=1), default=1, metavar="N", help="one per GPU (default 1)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the trainer, such as trainable=full or batch_size=32; can be repeated",
    )
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(lambda: _run(parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    import json

    results = distil(options)
    if options.json:
        out(json.dumps(results, indent=1))
        return 0
    for one in results:
        out(f"{one['model']}  {one['steps']} steps, {one['passes']} passes an image, loss {one['loss']:.5f}")
    return 0

"""What is scored and how models paint, as options; and the evaluation that all options describe."""

import argparse
from pathlib import Path

from l2p_eval.errors import EvalError
from l2p_eval.evaluation import Evaluation, Scored
from l2p_eval.geneval.eyes import Eyes
from l2p_eval.metric_options import COMMANDS, COUNT, SIDE
from l2p_eval.painting import Model, Painting, model_settings
from l2p_run.command import number, seed_argument
from l2p_run.devices import resolve_dtype
from l2p_run.places import check_path, is_folder

PACKAGES = (
    *("l2p-arch", "l2p-eval", "l2p-mini", "torch", "torchvision", "diffusers", "transformers"),
    *("torchmetrics", "torch-fidelity", "efficientnet-lite-pytorch", "pillow"),
)
"""Whose versions stand in a result."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what is scored and where the results go, and how a model paints."""
    add = parser.add_argument
    several = {"action": "append", "default": [], "metavar": "[NAME=]DIR"}
    add("--images", **several, help="a folder to score; several are compared")  # type: ignore[arg-type]
    painted = "a run of l2p-transfer or a diffusers directory to paint with; several are compared"
    add("--model", **several, help=painted)  # type: ignore[arg-type]
    add("-o", "--output", type=Path, default=Path("evaluation"), metavar="DIR", help="default: evaluation/")
    add("--json", action="store_true", help="print results.json instead of the table")
    add = parser.add_argument_group("painting (with --model)").add_argument
    per_prompt = "default 1; GenEval and DPG use 4. GenEval wants as many of a folder, where it is given"
    add("--images-per-prompt", type=COUNT, metavar="N", help=per_prompt)
    add("--seed", type=seed_argument, default=42, help="of the first image (default 42)")
    add("--height", type=SIDE, metavar="PX", help="default: the model's own, as for the following")
    add("--width", type=SIDE, metavar="PX")
    add("--steps", type=COUNT)
    add("--guidance", type=number(float, ge=0, le=1000))
    add("--shift", type=number(float, gt=0, le=1000), help="noise shift, of pixel-space models")
    add("--max-sequence-length", type=number(int, ge=1, le=1 << 20), metavar="TOKENS")
    add("--dtype", default="auto", choices=DTYPES)
    add("--cpu-offload", action="store_true", help="text encoder, transformer, VAE on the GPU by turns")
    add("--batch-size", type=COUNT, default=8, metavar="N")
    workers = "default one per GPU or core; 0: this process"
    add("--workers", type=number(int, ge=0, le=10_000), metavar="N", help=workers)
    add("--executor", choices=("processes", "ray"), default="processes", help="ray: also on a cluster")


def evaluation_of(options: argparse.Namespace) -> Evaluation:
    """Return everything that an evaluation needs; what cannot work is refused before anything is painted."""
    entries = _entries(options)
    loaded = COMMANDS[options.metric].load(options, {"scenes": _scenes})
    return Evaluation(
        metric=options.metric,
        entries=entries,
        score=lambda pictures, progress: loaded.score(pictures, progress=progress),
        prompts=loaded.prompts,
        named=loaded.named,
        painting=Painting(
            images_per_prompt=options.images_per_prompt or 1,
            seed=options.seed,
            batch_size=options.batch_size,
            workers=options.workers,
            executor=options.executor,
        ),
    )


def _scenes() -> Eyes:
    """Return the miniature's exact detector, which needs no weights."""
    from l2p_mini.detector import ExactDetector

    return Eyes(description="the exact detector of rendered scenes", detector=ExactDetector())


def _entries(options: argparse.Namespace) -> list[Scored]:
    """Return the folders, then the models, with names of their own."""
    given = [(*_named(text), False) for text in options.images]
    given += [(*_named(text), True) for text in options.model]
    if not given:
        raise EvalError("nothing to score; give --images DIR or --model DIR")
    names = [name for name, _, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise EvalError(f"two entries are called {name!r}; name them, as in --model ours=DIR")
    entries = []
    for name, path, is_model in given:
        if not is_model and not is_folder(path):
            raise EvalError(f"no image folder {path}; give a folder of images to --images")
        folder = options.output / "images" / name if is_model else path
        entries.append(Scored(name=name, folder=folder, model=_model(path, options) if is_model else None))
    return entries


def _named(text: str) -> tuple[str, Path]:
    """Return ("source", DIR) of "source=DIR", or the directory's own name."""
    name, separator, rest = text.partition("=")
    if separator and name and rest and "/" not in name:
        return name, check_path(Path(rest))
    return check_path(Path(text)).resolve().name, Path(text)


def _model(path: Path, options: argparse.Namespace) -> Model:
    """Return a model with its own sampling defaults, overridden by the options that are given."""
    from l2p_arch.errors import ArchError
    from l2p_arch.sampling.painter import Painter, find_model, sampling_defaults

    try:
        found = find_model(path)
        known = sampling_defaults(found.directory).options if found.pixel else {}
    except ArchError as error:
        raise EvalError(f"--model {error}") from error
    sampling = {
        "height": options.height,
        "width": options.width,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "noise_shift": options.shift,
        "max_sequence_length": options.max_sequence_length,
    }
    if not found.pixel and options.shift is not None:
        raise EvalError("--shift is of pixel-space models; a latent model brings its scheduler's own")
    directory = found.directory
    dtype = resolve_dtype(options.dtype)
    call = known | {key: value for key, value in sampling.items() if value is not None}
    if found.pixel:
        found.check_size(call["height"], call["width"])
    return Model(
        load=Painter(directory=directory, dtype=dtype, options=call, cpu_offload=options.cpu_offload),
        settings=model_settings(directory, dtype, call),
    )

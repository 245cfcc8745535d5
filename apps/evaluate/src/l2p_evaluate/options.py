"""The options of every metric, and the evaluation that they describe, with its judges loaded."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from l2p_eval import judged
from l2p_eval.errors import EvalError
from l2p_eval.evaluation import Evaluation, Scored
from l2p_eval.geneval.eyes import Eyes, coco_eyes
from l2p_eval.judged import INCEPTION, Judged
from l2p_eval.painting import Model, Painting, model_settings
from l2p_run.command import number, seed_argument
from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.places import check_path, is_folder

SIDE = number(int, ge=1, le=1 << 16)
COUNT = number(int, ge=1, le=10_000)
PACKAGES = (
    *("l2p-arch", "l2p-eval", "l2p-mini", "torch", "torchvision", "diffusers", "transformers"),
    *("torchmetrics", "torch-fidelity", "efficientnet-lite-pytorch", "pillow"),
)
"""Whose versions stand in a result."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_common(parser: argparse.ArgumentParser) -> None:
    """What is scored and where the results go; how a model paints."""
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
    """Everything that an evaluation needs; what cannot work is refused before anything is painted."""
    entries = _entries(options)
    loaded = COMMANDS[options.metric].load(options)
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


def _entries(options: argparse.Namespace) -> list[Scored]:
    """The folders, then the models, with names of their own."""
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
    """("source", DIR) of "source=DIR", or the directory's own name."""
    name, separator, rest = text.partition("=")
    if separator and name and rest and "/" not in name:
        return name, check_path(Path(rest))
    return check_path(Path(text)).resolve().name, Path(text)


def _model(path: Path, options: argparse.Namespace) -> Model:
    """A model with its own sampling defaults, overridden by the options that are given."""
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


# ------------------------------------------------------------------------------------------- the metrics


@dataclass(frozen=True, kw_only=True)
class Command:
    """A metric's own options, and what becomes of them."""

    add_options: Callable[[argparse.ArgumentParser], None]
    load: Callable[[argparse.Namespace], Judged]


def _prompt_options(parser: argparse.ArgumentParser) -> None:
    """Options of metrics that take prompts from a file."""
    forms = ".csv, .jsonl, .json, .parquet: names (file_name, name) and texts (text, prompt, captions)"
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=forms)
    parser.add_argument("--text-column", metavar="NAME", help="of --prompts; default: the first known one")


def _prompts(options: argparse.Namespace) -> judged.Prompts:
    return judged.Prompts(file=options.prompts, column=options.text_column)


def _geneval_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--metadata", type=Path, metavar="FILE", help="evaluation_metadata.jsonl; needed with --model")
    add("--detector", choices=("coco", "scenes"), default="coco", help="scenes: the miniature's exact one")
    add("--detector-model", type=Path, metavar="DIR", help="Mask2Former (Swin-S, COCO instance)")
    add("--color-model", type=Path, metavar="DIR", help="CLIP (ViT-L/14)")


def _geneval(options: argparse.Namespace) -> Judged:
    if options.model and options.metadata is None:
        raise EvalError(
            "--metadata is missing; give GenEval's evaluation_metadata.jsonl, or one in its format"
        )
    return judged.geneval(
        _eyes(options), metadata=options.metadata, images_per_prompt=options.images_per_prompt
    )


def _eyes(options: argparse.Namespace) -> Eyes:
    if options.detector == "scenes":
        from l2p_mini.detector import ExactDetector

        return Eyes(description="the exact detector of rendered scenes", detector=ExactDetector())
    for key in ("detector_model", "color_model"):
        if getattr(options, key) is None:
            raise EvalError(
                f"--{key.replace('_', '-')} is missing; give a transformers directory; --detector scenes"
                " needs none, for the miniature"
            )
    return coco_eyes(options.detector_model, options.color_model, device=choose_device())


def _dpg_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--csv", type=Path, required=True, metavar="FILE", help="dpg_bench.csv")
    add("--judge-model", type=Path, metavar="DIR", help="a visual-question-answering model (transformers)")
    add("--judge-server", metavar="URL", help="an OpenAI-compatible server, with --judge-name")
    add("--judge-name", metavar="MODEL", help="the server's model")
    add("--mode", choices=("official_compat", "fixed"), default="official_compat", help="how to add up")
    add("--grid", type=SIDE, metavar="PX", help="--images holds ITEM.png grids of 2 x 2 images of PX")


def _dpg(options: argparse.Namespace) -> Judged:
    return judged.dpg(
        options.csv,
        model=options.judge_model,
        server=options.judge_server,
        name=options.judge_name,
        mode=options.mode,
        grid=options.grid,
        images_per_prompt=options.images_per_prompt or 1,
        answers=options.output,
        device=choose_device(),
    )


def _fid_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--reference", type=Path, required=True, metavar="DIR", help="images to compare with")
    add("--weights", type=Path, metavar="FILE", help=INCEPTION)
    add("--features", metavar="NAME", help="instead of --weights: efficientnet-lite0, which needs no file")
    add("--patches", metavar="SIZExCOUNT", help="crops in place of whole images: 299x20 is FID-patch")
    add("--patch-seed", type=seed_argument, default=42)
    _prompt_options(parser)


def _fid(options: argparse.Namespace) -> Judged:
    return judged.frechet(
        options.reference,
        weights=options.weights,
        features=options.features,
        patches=judged.patches_of(options.patches, options.patch_seed),
        prompts=_prompts(options),
        device=choose_device(),
    )


def _inception_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help=INCEPTION)
    parser.add_argument("--splits", type=COUNT, default=10)
    _prompt_options(parser)


def _inception(options: argparse.Namespace) -> Judged:
    return judged.inception_score(
        options.weights, splits=options.splits, prompts=_prompts(options), device=choose_device()
    )


def _clip_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--clip-model", type=Path, required=True, metavar="DIR", help="transformers directory")
    remote = "run the code in --clip-model (FG-CLIP needs it)"
    add("--trust-remote-code", action="store_true", help=remote)
    _prompt_options(parser)


def _clip(kind: Literal["clip", "long-clip", "fg-clip"], options: argparse.Namespace) -> Judged:
    return judged.alignment(
        options.clip_model,
        kind,
        trust_remote_code=options.trust_remote_code,
        prompts=_prompts(options),
        device=choose_device(),
    )


def _diversity_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--weights", type=Path, metavar="FILE", help="LPIPS: torchvision's backbone weights")
    add("--backbone", choices=("alex", "vgg", "squeeze"), default="alex", help="of LPIPS")
    add("--size", type=SIDE, default=256, metavar="PX", help="LPIPS compares at this size")
    add("--features", metavar="NAME", help="instead of LPIPS: efficientnet-lite0")
    _prompt_options(parser)


def _diversity(options: argparse.Namespace) -> Judged:
    if options.model and (options.images_per_prompt or 1) < 2:
        raise EvalError("diversity compares seeds; give --images-per-prompt 2 or more")
    return judged.diversity(
        weights=options.weights,
        backbone=options.backbone,
        size=options.size,
        features=options.features,
        prompts=_prompts(options),
        device=choose_device(),
    )


def _grid_options(parser: argparse.ArgumentParser) -> None:
    patch = "the L2P model's, for its source too (default 16, that of the published 1K model)"
    parser.add_argument("--patch-size", type=SIDE, default=16, metavar="PX", help=patch)
    _prompt_options(parser)


def _grid(options: argparse.Namespace) -> Judged:
    return judged.patch_grid(options.patch_size, prompts=_prompts(options))


COMMANDS: dict[str, Command] = {
    "geneval": Command(add_options=_geneval_options, load=_geneval),
    "dpg": Command(add_options=_dpg_options, load=_dpg),
    "fid": Command(add_options=_fid_options, load=_fid),
    "inception-score": Command(add_options=_inception_options, load=_inception),
    "clip": Command(add_options=_clip_options, load=partial(_clip, "clip")),
    "long-clip": Command(add_options=_clip_options, load=partial(_clip, "long-clip")),
    "fg-clip": Command(add_options=_clip_options, load=partial(_clip, "fg-clip")),
    "diversity": Command(add_options=_diversity_options, load=_diversity),
    "patch-grid": Command(add_options=_grid_options, load=_grid),
}
"""What `l2p_eval.scores.METRICS` has, each with its options."""

"""The options of every metric, and the evaluation that they describe, with its judges loaded."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from l2p_eval import scores
from l2p_eval.errors import EvalError
from l2p_eval.evaluation import Evaluation, Scored
from l2p_eval.painting import Model, Painting, model_settings
from l2p_eval.prompt_sets import PromptSet, find_images, read_prompt_set
from l2p_run.command import number, seed_argument
from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.hashes import of_file
from l2p_run.places import check_path, is_folder

INCEPTION = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
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
    judged = COMMANDS[options.metric].load(options)
    return Evaluation(
        metric=options.metric,
        entries=entries,
        score=lambda pictures, progress: judged.score(pictures, progress=progress),
        prompts=judged.prompts,
        named=judged.named,
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
class Judged:
    """A score function with its judges, and the prompts that the command brings."""

    score: Callable[..., scores.Score]
    prompts: Any = ()
    named: PromptSet | None = None


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


def _with_prompts(options: argparse.Namespace, score: Callable[..., scores.Score]) -> Judged:
    if not options.prompts:
        return Judged(score=score)
    named = read_prompt_set(options.prompts, options.text_column)
    described = f"{options.prompts.name} sha256 {of_file(options.prompts)}"
    return Judged(score=partial(score, prompts=described), prompts=named.texts, named=named)


def _need(value: Any, option: str, what: str) -> Any:
    """The value of an option that this metric cannot do without."""
    if value is None:
        raise EvalError(f"{option} is missing; give {what}")
    return value


def _geneval_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--metadata", type=Path, metavar="FILE", help="evaluation_metadata.jsonl; needed with --model")
    add("--detector", choices=("coco", "scenes"), default="coco", help="scenes: the miniature's exact one")
    add("--detector-model", type=Path, metavar="DIR", help="Mask2Former (Swin-S, COCO instance)")
    add("--color-model", type=Path, metavar="DIR", help="CLIP (ViT-L/14)")


def _geneval(options: argparse.Namespace) -> Judged:
    from l2p_eval.geneval import check_prompts, read_metadata

    if options.model:
        _need(options.metadata, "--metadata", "GenEval's evaluation_metadata.jsonl, or one in its format")
    rows = read_metadata(options.metadata) if options.metadata else None
    detector, colors = _detector(options)
    check_prompts(rows or [], detector, colors)
    score = partial(
        scores.geneval,
        detector=detector,
        colors=colors,
        prompts=rows,
        metadata=f"{options.metadata.name} sha256 {of_file(options.metadata)}" if rows else "the folder's",
    )

    def judge(pictures: Any, progress: scores.Progress) -> scores.Score:
        wanted = options.images_per_prompt or (1 if pictures.settings is not None else None)
        return score(pictures, images_per_prompt=wanted, progress=progress)

    return Judged(score=judge, prompts=[row.prompt for row in rows or []])


def _detector(options: argparse.Namespace) -> tuple[Any, Any]:
    if options.detector == "scenes":
        from l2p_mini.detector import ExactDetector

        return ExactDetector(), None
    from l2p_eval.geneval.detectors import ClipColors, Mask2FormerDetector

    wanted = "a transformers directory; --detector scenes needs none, for the miniature"
    model = _need(options.detector_model, "--detector-model", wanted)
    colors = _need(options.color_model, "--color-model", wanted)
    return Mask2FormerDetector(model, device=choose_device()), ClipColors(colors, device=choose_device())


def _dpg_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--csv", type=Path, required=True, metavar="FILE", help="dpg_bench.csv")
    add("--judge-model", type=Path, metavar="DIR", help="a visual-question-answering model (transformers)")
    add("--judge-server", metavar="URL", help="an OpenAI-compatible server, with --judge-name")
    add("--judge-name", metavar="MODEL", help="the server's model")
    add("--mode", choices=("official_compat", "fixed"), default="official_compat", help="how to add up")
    add("--grid", type=SIDE, metavar="PX", help="--images holds ITEM.png grids of 2 x 2 images of PX")


def _dpg(options: argparse.Namespace) -> Judged:
    from l2p_eval.dpg.benchmark import read_dpg
    from l2p_eval.dpg.judges import ServerJudge, VqaJudge

    rows = read_dpg(options.csv)
    if bool(options.judge_model) == bool(options.judge_server):
        raise EvalError("give one judge: --judge-model DIR, or --judge-server URL with --judge-name")
    if options.judge_server:
        name = _need(options.judge_name, "--judge-name", "the model that the server shall use")
        judge: Any = ServerJudge(base_url=options.judge_server, model=name)
    else:
        judge = VqaJudge(options.judge_model, device=choose_device())
    score = partial(
        scores.dpg,
        judge=judge,
        prompts=rows,
        mode=options.mode,
        csv=f"{options.csv.name} sha256 {of_file(options.csv)}",
        grid=options.grid,
        images_per_prompt=options.images_per_prompt or 1,
    )

    def ask(pictures: Any, progress: scores.Progress) -> scores.Score:
        answers = options.output / f"answers-{pictures.name}.jsonl"
        return score(pictures, answers=answers, progress=progress)

    return Judged(score=ask, prompts=[row.text for row in rows])


def _fid_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--reference", type=Path, required=True, metavar="DIR", help="images to compare with")
    add("--weights", type=Path, metavar="FILE", help=INCEPTION)
    add("--features", metavar="NAME", help="instead of --weights: efficientnet-lite0, which needs no file")
    add("--patches", metavar="SIZExCOUNT", help="crops in place of whole images: 299x20 is FID-patch")
    add("--patch-seed", type=seed_argument, default=42)
    _prompt_options(parser)


def _fid(options: argparse.Namespace) -> Judged:
    from l2p_eval.metrics.features import load_extractor
    from l2p_eval.metrics.inception import inception

    patches = _patches(options.patches, options.patch_seed)
    reference = find_images(options.reference)
    if bool(options.weights) == bool(options.features):
        raise EvalError(f"give --weights FILE ({INCEPTION}) or --features efficientnet-lite0")
    extractor = inception(options.weights) if options.weights else load_extractor(options.features)
    name = options.reference.resolve().name
    score = partial(scores.frechet, reference=reference, reference_name=name, patches=patches)
    return _with_prompts(options, partial(score, extractor=extractor.to(choose_device())))


def _patches(text: str | None, seed: int) -> Any:
    from l2p_eval.metrics.frechet import Patches

    if text is None:
        return None
    try:
        size, count = (SIDE(part) for part in text.split("x"))
    except (ValueError, argparse.ArgumentTypeError):
        raise EvalError(
            f"--patches {text!r} is not SIZExCOUNT with whole numbers from 1 to 65,536, such as 299x20"
        ) from None
    return Patches(size=size, count=count, seed=seed)


def _inception_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help=INCEPTION)
    parser.add_argument("--splits", type=COUNT, default=10)
    _prompt_options(parser)


def _inception(options: argparse.Namespace) -> Judged:
    from l2p_eval.metrics.inception import inception

    classifier = inception(options.weights, output="logits_unbiased").to(choose_device())
    score = partial(scores.inception_score, classifier=classifier, splits=options.splits)
    return _with_prompts(options, score)


def _clip_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--clip-model", type=Path, required=True, metavar="DIR", help="transformers directory")
    remote = "run the code in --clip-model (FG-CLIP needs it)"
    add("--trust-remote-code", action="store_true", help=remote)
    _prompt_options(parser)


def _clip(kind: Literal["clip", "long-clip", "fg-clip"], options: argparse.Namespace) -> Judged:
    from l2p_eval.metrics.alignment import TextImageModel

    trust = options.trust_remote_code
    model = TextImageModel(options.clip_model, kind, device=choose_device(), trust_remote_code=trust)
    return _with_prompts(options, partial(scores.alignment, model=model))


def _diversity_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--weights", type=Path, metavar="FILE", help="LPIPS: torchvision's backbone weights")
    add("--backbone", choices=("alex", "vgg", "squeeze"), default="alex", help="of LPIPS")
    add("--size", type=SIDE, default=256, metavar="PX", help="LPIPS compares at this size")
    add("--features", metavar="NAME", help="instead of LPIPS: efficientnet-lite0")
    _prompt_options(parser)


def _diversity(options: argparse.Namespace) -> Judged:
    from l2p_eval.metrics.features import load_extractor
    from l2p_eval.metrics.lpips import Lpips

    if options.model and (options.images_per_prompt or 1) < 2:
        raise EvalError("diversity compares seeds; give --images-per-prompt 2 or more")
    if bool(options.weights) == bool(options.features):
        raise EvalError("give --weights FILE for LPIPS, or --features efficientnet-lite0")
    extractor: Any = (
        Lpips(options.weights, options.backbone, size=options.size, device=choose_device())
        if options.weights
        else load_extractor(options.features).to(choose_device())
    )
    return _with_prompts(options, partial(scores.diversity, extractor=extractor))


def _grid_options(parser: argparse.ArgumentParser) -> None:
    patch = "the L2P model's, for its source too (default 16, that of the published 1K model)"
    parser.add_argument("--patch-size", type=SIDE, default=16, metavar="PX", help=patch)
    _prompt_options(parser)


def _grid(options: argparse.Namespace) -> Judged:
    return _with_prompts(options, partial(scores.patch_grid, patch_size=options.patch_size))


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

"""The options of every metric on a command line, and its judges loaded from what was given.

Who adds a metric adds its row here; the command itself does not change.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from l2p_run.command import number, seed_argument
from l2p_run.devices import choose_device

from l2p_eval import judged
from l2p_eval.errors import EvalError
from l2p_eval.geneval.eyes import Eyes, coco_eyes
from l2p_eval.judged import INCEPTION, Judged

SIDE = number(int, ge=1, le=1 << 16)
COUNT = number(int, ge=1, le=10_000)
OtherEyes = Mapping[str, Callable[[], Eyes]]
"""Detectors of GenEval that other packages bring, by name: "scenes", the miniature's."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A metric's own options, and what becomes of them."""

    add_options: Callable[[argparse.ArgumentParser], None]
    load: Callable[[argparse.Namespace, OtherEyes], Judged]


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


def _geneval(options: argparse.Namespace, others: OtherEyes) -> Judged:
    if options.model and options.metadata is None:
        raise EvalError(
            "--metadata is missing; give GenEval's evaluation_metadata.jsonl, or one in its format"
        )
    return judged.geneval(
        _eyes(options, others), metadata=options.metadata, images_per_prompt=options.images_per_prompt
    )


def _eyes(options: argparse.Namespace, others: OtherEyes) -> Eyes:
    if options.detector in others:
        return others[options.detector]()
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


def _dpg(options: argparse.Namespace, _: OtherEyes) -> Judged:
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


def _fid(options: argparse.Namespace, _: OtherEyes) -> Judged:
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


def _inception(options: argparse.Namespace, _: OtherEyes) -> Judged:
    return judged.inception_score(
        options.weights, splits=options.splits, prompts=_prompts(options), device=choose_device()
    )


def _clip_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--clip-model", type=Path, required=True, metavar="DIR", help="transformers directory")
    remote = "run the code in --clip-model (FG-CLIP needs it)"
    add("--trust-remote-code", action="store_true", help=remote)
    _prompt_options(parser)


def _clip(kind: Literal["clip", "long-clip", "fg-clip"], options: argparse.Namespace, _: OtherEyes) -> Judged:
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


def _diversity(options: argparse.Namespace, _: OtherEyes) -> Judged:
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


def _grid(options: argparse.Namespace, _: OtherEyes) -> Judged:
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
"""What `METRICS` has, each with its options."""

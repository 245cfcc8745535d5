"""FID and FID-patch, Inception Score, the CLIP scores (Table 2), and diversity (Fig. 5)."""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from l2p_eval.errors import EvalError
from l2p_eval.metrics.alignment import Kind, TextImageModel, alignment_of
from l2p_eval.metrics.diversity import diversity_of
from l2p_eval.metrics.features import FeatureExtractor, load_extractor
from l2p_eval.metrics.frechet import Patches, frechet_between
from l2p_eval.metrics.inception import inception
from l2p_eval.metrics.inception_score import inception_score_of
from l2p_eval.metrics.lpips import Lpips
from l2p_eval.metrics.patch_grid import patch_grid_of
from l2p_eval.prompt_sets import find_images

from l2p_evaluate.arguments import positive
from l2p_evaluate.errors import EvaluateError
from l2p_evaluate.hashing import sha256_of
from l2p_evaluate.pictures import Pictures, Progress
from l2p_evaluate.scorers import (
    Score,
    Scorer,
    add_prompts,
    device,
    images_of,
    pairs_of,
    prompt_set,
)

_INCEPTION = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"


class Fid(Scorer):
    """Frechet distance from a reference set; FID with the published Inception weights."""

    title = "Frechet distance"
    better = "lower is better"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--reference", type=Path, required=True, metavar="DIR", help="images to compare with")
        add("--weights", type=Path, metavar="FILE", help=_INCEPTION)
        add(
            "--features", metavar="NAME", help="instead of --weights: efficientnet-lite0, which needs no file"
        )
        add("--patches", metavar="SIZExCOUNT", help="crops in place of whole images: 299x20 is FID-patch")
        add("--patch-seed", type=int, default=42)
        add_prompts(parser)

    def __init__(self, options: argparse.Namespace) -> None:
        self.set = prompt_set(options)
        self.prompts = self.set.texts if self.set else ()
        self.prompt_file: Path | None = options.prompts
        self.patches = _patches(options.patches, options.patch_seed)
        # The paper's numbers are on Inception's features, and those on others are no FID.
        self.paper = "" if options.features else "fid-patch" if self.patches else "fid"
        self.reference = find_images(options.reference)
        self._folder = {"reference": f"{options.reference.resolve().name}, {_hash_of(self.reference)}"}
        if bool(options.weights) == bool(options.features):
            raise EvaluateError(f"give --weights FILE ({_INCEPTION}) or --features efficientnet-lite0")
        made = inception(options.weights) if options.weights else load_extractor(options.features)
        self.extractor = _to_device(made)

    def score(self, pictures: Pictures, progress: Progress) -> Score:
        result = frechet_between(
            self.reference,
            images_of(pictures, self.set),
            self.extractor,
            patches=self.patches,
            on_image=lambda done, total: progress(done, total, f"features of {pictures.name}"),
        )
        if result.rank_deficient:
            print(
                f"note: {result.name} of {pictures.name} rests on fewer images than its features are wide; "
                "compare it with distances of as many images only",
                file=sys.stderr,
            )
        row = result.to_row()
        return Score(
            values={result.name: row.pop("value")},
            definition=row | self._folder | _prompts(self.prompt_file),
        )


class InceptionScore(Scorer):
    """exp of the mean divergence of p(class | image) from p(class)."""

    title = "Inception Score"
    paper = "inception-score"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help=_INCEPTION)
        parser.add_argument("--splits", type=positive, default=10)
        add_prompts(parser)

    def __init__(self, options: argparse.Namespace) -> None:
        self.set = prompt_set(options)
        self.prompts = self.set.texts if self.set else ()
        self.prompt_file, self.splits = options.prompts, options.splits
        self.classifier = _to_device(inception(options.weights, output="logits_unbiased"))

    def score(self, pictures: Pictures, progress: Progress) -> Score:
        result = inception_score_of(
            images_of(pictures, self.set),
            self.classifier,
            splits=self.splits,
            on_image=lambda done, total: progress(done, total, f"classifying {pictures.name}"),
        )
        row = result.to_row()
        return Score(
            values={result.name: row.pop("value"), "deviation": row.pop("deviation")},
            definition=row | _prompts(self.prompt_file),
        )


class _Alignment(Scorer):
    kind: ClassVar[Kind]

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--clip-model", type=Path, required=True, metavar="DIR", help="transformers directory"
        )
        parser.add_argument(
            "--trust-remote-code", action="store_true", help="run the code in --clip-model (FG-CLIP needs it)"
        )
        add_prompts(parser)

    def __init__(self, options: argparse.Namespace) -> None:
        self.set = prompt_set(options)
        self.prompts = self.set.texts if self.set else ()
        self.prompt_file: Path | None = options.prompts
        self.model = TextImageModel(
            options.clip_model, self.kind, device=device(), trust_remote_code=options.trust_remote_code
        )

    def score(self, pictures: Pictures, progress: Progress) -> Score:
        paths, prompts = pairs_of(pictures, self.set)
        result = alignment_of(
            paths,
            prompts,
            self.model,
            on_image=lambda done, total: progress(done, total, f"reading {pictures.name}"),
        )
        row = result.to_row()
        texts = _prompts(self.prompt_file) or {"prompts": _hash_of_texts(prompts)}
        return Score(values={result.name: row.pop("value")}, definition=row | texts)


class Clip(_Alignment):
    """100 * cosine of a CLIP's embeddings."""

    title, kind = "CLIP score", "clip"


class LongClip(_Alignment):
    """The same with a CLIP of 248 positions; the paper's "CLIP" column."""

    title, kind, paper = "Long-CLIP score", "long-clip", "long-clip"


class FgClip(_Alignment):
    """The same with FG-CLIP."""

    title, kind, paper = "FG-CLIP score", "fg-clip", "fg-clip"


class Diversity(Scorer):
    """Mean distance between the images of one prompt, over its seeds."""

    title = "Diversity over seeds"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--weights", type=Path, metavar="FILE", help="LPIPS: torchvision's backbone weights"
        )
        parser.add_argument("--backbone", choices=("alex", "vgg", "squeeze"), default="alex", help="of LPIPS")
        parser.add_argument(
            "--size", type=positive, default=256, metavar="PX", help="LPIPS compares at this size"
        )
        parser.add_argument("--features", metavar="NAME", help="instead of LPIPS: efficientnet-lite0")
        add_prompts(parser)

    def __init__(self, options: argparse.Namespace) -> None:
        self.set = prompt_set(options)
        self.prompts = self.set.texts if self.set else ()
        self.prompt_file: Path | None = options.prompts
        if options.model and (options.images_per_prompt or 1) < 2:
            raise EvaluateError("diversity compares seeds; give --images-per-prompt 2 or more")
        if bool(options.weights) == bool(options.features):
            raise EvaluateError("give --weights FILE for LPIPS, or --features efficientnet-lite0")
        self.extractor: Any = (
            Lpips(options.weights, options.backbone, size=options.size, device=device())
            if options.weights
            else _to_device(load_extractor(options.features))
        )

    def score(self, pictures: Pictures, progress: Progress) -> Score:
        groups: dict[str, list[Path]] = {}
        for path, prompt in zip(*pairs_of(pictures, None), strict=True):
            groups.setdefault(prompt, []).append(path)
        result = diversity_of(
            groups,
            self.extractor,
            on_prompt=lambda done, total: progress(done, total, f"comparing {pictures.name}"),
        )
        row = result.to_row()
        texts = _prompts(self.prompt_file) if pictures.model else {"prompts": _hash_of_texts([*groups])}
        return Score(values={result.name: row.pop("value")}, definition=row | texts)


class PatchGrid(Scorer):
    """Jumps at the borders of patches over jumps inside them."""

    title = "Patch grid"
    better = "near the source's own is better; a number that stands above it is a visible grid"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--patch-size",
            type=positive,
            default=16,
            metavar="PX",
            help="the L2P model's, for its source too (default 16, that of the published 1K model)",
        )
        add_prompts(parser)

    def __init__(self, options: argparse.Namespace) -> None:
        self.set = prompt_set(options)
        self.prompts = self.set.texts if self.set else ()
        self.prompt_file: Path | None = options.prompts
        self.patch_size: int = options.patch_size

    def score(self, pictures: Pictures, progress: Progress) -> Score:
        result = patch_grid_of(
            images_of(pictures, self.set),
            self.patch_size,
            on_image=lambda done, total: progress(done, total, f"measuring {pictures.name}"),
        )
        row = result.to_row()
        values = {result.name: row.pop("value"), "borders": row.pop("borders"), "inside": row.pop("inside")}
        return Score(values=values, definition=row | _prompts(self.prompt_file))


def _patches(text: str | None, seed: int) -> Patches | None:
    if text is None:
        return None
    try:
        size, count = (int(part) for part in text.split("x"))
    except ValueError:
        raise EvaluateError(f"--patches {text!r} is not SIZExCOUNT, such as 299x20") from None
    if size < 1 or count < 1:
        raise EvalError(f"--patches {text!r}: size and count start from 1")
    return Patches(size=size, count=count, seed=seed)


def _to_device(extractor: FeatureExtractor) -> FeatureExtractor:
    extractor.network.to(device())
    return extractor


def _hash_of(paths: Sequence[Path]) -> str:
    """One hash over the contents of image files, in their order."""
    state = hashlib.sha256()
    for path in paths:
        state.update(bytes.fromhex(sha256_of(path)))
    return f"sha256 of its {len(paths)} files {state.hexdigest()}"


def _hash_of_texts(prompts: Sequence[str]) -> str:
    """Prompts that the folder itself names."""
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
    return f"the folder's {len(prompts)}, sha256 {digest}"


def _prompts(path: Path | None) -> dict[str, str]:
    return {"prompts": f"{path.name} sha256 {sha256_of(path)}"} if path else {}

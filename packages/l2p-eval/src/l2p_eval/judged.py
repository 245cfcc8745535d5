"""A metric with its judges loaded: from the files and names that a user gives to a function of pictures.

Everything that cannot work is refused here, before anything is painted or scored. Errors name what is wrong
by the options of `l2p-evaluate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from l2p_run.command import number
from l2p_run.hashes import of_file

from l2p_eval import scores
from l2p_eval.errors import EvalError
from l2p_eval.prompt_sets import PromptSet, find_images, read_prompt_set

if TYPE_CHECKING:
    from l2p_eval.dpg.benchmark import Mode
    from l2p_eval.geneval.eyes import Eyes
    from l2p_eval.metrics.frechet import Patches

INCEPTION = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
OTHER_FEATURES = "--features efficientnet-lite0"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A score function with its judges, and the prompts that come with them.

    Attributes:
        score: takes pictures and `progress`.
        prompts: what models paint; () where there are none.
        named: names and texts of the images of folders, where a file says them.
    """

    score: Callable[..., scores.Score]
    prompts: Sequence[str] = ()
    named: PromptSet | None = None


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts from a file, for metrics that bring none of their own.

    Attributes:
        file: None: there are none.
        column: of the texts; None: the first one known.
    """

    file: Path | None = None
    column: str | None = None

    def given_to(self, score: Callable[..., scores.Score]) -> Judged:
        """Return the score function with these prompts."""
        if not self.file:
            return Judged(score=score)
        named = read_prompt_set(self.file, self.column)
        return Judged(score=partial(score, prompts=_described(self.file)), prompts=named.texts, named=named)


def geneval(eyes: "Eyes", *, metadata: Path | None = None, images_per_prompt: int | None = None) -> Judged:
    """GenEval by the eyes.

    Args:
        metadata: GenEval's evaluation_metadata.jsonl; None: whatever a folder asks for.
        images_per_prompt: how many there must be; None: 1 of a model, any number of a folder.
    """
    from l2p_eval.geneval import check_prompts, read_metadata

    rows = read_metadata(metadata) if metadata else None
    check_prompts(rows or [], eyes.detector, eyes.colors)
    score = partial(
        scores.geneval,
        detector=eyes.detector,
        colors=eyes.colors,
        prompts=rows,
        metadata=_described(metadata) if metadata and rows else "the folder's",
    )

    def judge(pictures: Any, progress: scores.Progress) -> scores.Score:
        wanted = images_per_prompt or (1 if pictures.settings is not None else None)
        return score(pictures, images_per_prompt=wanted, progress=progress)

    return Judged(score=judge, prompts=[row.prompt for row in rows or []])


def dpg(
    csv: Path,
    *,
    model: Path | None = None,
    server: str | None = None,
    name: str | None = None,
    mode: "Mode" = "official_compat",
    grid: int | None = None,
    images_per_prompt: int = 1,
    answers: Path,
    device: str,
) -> Judged:
    """DPG-Bench by a visual-question-answering model or an OpenAI-compatible server, one of them.

    Args:
        csv: dpg_bench.csv.
        model: a transformers directory.
        server: base URL; `name` is its model.
        grid: px; files are 2 x 2 grids of images of this side.
        answers: folder that keeps what the judge said.
    """
    from l2p_eval.dpg.benchmark import read_dpg
    from l2p_eval.dpg.judges import ServerJudge, VqaJudge

    rows = read_dpg(csv)
    if bool(model) == bool(server):
        raise EvalError("give one judge: --judge-model DIR, or --judge-server URL with --judge-name")
    if server:
        if name is None:
            raise EvalError("--judge-name is missing; give the model that the server shall use")
        judge: Any = ServerJudge(base_url=server, model=name)
    else:
        assert model is not None
        judge = VqaJudge(model, device=device)
    score = partial(
        scores.dpg,
        judge=judge,
        prompts=rows,
        mode=mode,
        csv=_described(csv),
        grid=grid,
        images_per_prompt=images_per_prompt,
    )

    def ask(pictures: Any, progress: scores.Progress) -> scores.Score:
        return score(pictures, answers=answers / f"answers-{pictures.name}.jsonl", progress=progress)

    return Judged(score=ask, prompts=[row.text for row in rows])


def frechet(
    reference: Path,
    *,
    weights: Path | None = None,
    features: str | None = None,
    patches: "Patches | None" = None,
    prompts: Prompts,
    device: str,
) -> Judged:
    """Frechet distance from a folder of images, on Inception's features or on those of a name.

    Args:
        weights: of the published Inception.
        features: instead, a key of `l2p_eval.metrics.features.EXTRACTORS`.
    """
    from l2p_eval.metrics.features import load_extractor
    from l2p_eval.metrics.inception import inception

    images = find_images(reference)
    if weights and not features:
        extractor = inception(weights)
    elif features and not weights:
        extractor = load_extractor(features)
    else:
        raise EvalError(f"give --weights FILE ({INCEPTION}) or {OTHER_FEATURES}")
    score = partial(
        scores.frechet,
        reference=images,
        reference_name=reference.resolve().name,
        patches=patches,
        extractor=extractor.to(device),
    )
    return prompts.given_to(score)


def patches_of(text: str | None, seed: int) -> "Patches | None":
    """Return the patches that "299x20" means, 20 of 299 px from each image; None for None."""
    from argparse import ArgumentTypeError

    from l2p_eval.metrics.frechet import Patches

    if text is None:
        return None
    side = number(int, ge=1, le=1 << 16)
    try:
        size, count = (side(part) for part in text.split("x"))
    except (ValueError, ArgumentTypeError):
        raise EvalError(
            f"--patches {text!r} is not SIZExCOUNT with whole numbers from 1 to 65,536, such as 299x20"
        ) from None
    return Patches(size=size, count=count, seed=seed)


def inception_score(weights: Path, *, splits: int = 10, prompts: Prompts, device: str) -> Judged:
    """Inception Score on the published Inception's classes."""
    from l2p_eval.metrics.inception import inception

    classifier = inception(weights, output="logits_unbiased").to(device)
    return prompts.given_to(partial(scores.inception_score, classifier=classifier, splits=splits))


def alignment(
    model: Path,
    kind: Literal["clip", "long-clip", "fg-clip"],
    *,
    trust_remote_code: bool = False,
    prompts: Prompts,
    device: str,
) -> Judged:
    """Return CLIP, Long-CLIP or FG-CLIP score by the model of a transformers directory."""
    from l2p_eval.metrics.alignment import TextImageModel

    judge = TextImageModel(model, kind, device=device, trust_remote_code=trust_remote_code)
    return prompts.given_to(partial(scores.alignment, model=judge))


def diversity(
    *,
    weights: Path | None = None,
    backbone: Literal["alex", "vgg", "squeeze"] = "alex",
    size: int = 256,
    features: str | None = None,
    prompts: Prompts,
    device: str,
) -> Judged:
    """Return distance between the seeds of a prompt: LPIPS on a backbone's weights, or on features of a name.

    Args:
        size: px; LPIPS compares at this size.
    """
    from l2p_eval.metrics.features import load_extractor
    from l2p_eval.metrics.lpips import Lpips

    if bool(weights) == bool(features):
        raise EvalError(f"give --weights FILE for LPIPS, or {OTHER_FEATURES}")
    extractor: Any = None
    if weights:
        extractor = Lpips(weights, backbone, size=size, device=device)
    elif features:
        extractor = load_extractor(features).to(device)
    return prompts.given_to(partial(scores.diversity, extractor=extractor))


def patch_grid(patch_size: int, *, prompts: Prompts) -> Judged:
    """Return the grid of patches of `patch_size` px."""
    return prompts.given_to(partial(scores.patch_grid, patch_size=patch_size))


def _described(file: Path) -> str:
    """Return a file of prompts by its name and content, for a result's definition."""
    return f"{file.name} sha256 {of_file(file)}"

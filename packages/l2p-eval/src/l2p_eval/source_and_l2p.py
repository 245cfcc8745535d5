"""A source and its L2P model on the same prompts and seeds: what is kept, how far apart the images are.

Beside the Frechet distance stands its floor, the distance of two sets of the source's own images with other
seeds: no model can be expected below it. Beside the L2P model's patch grid stands the source's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_run.settings import LARGEST_SEED

from l2p_eval.errors import EvalError
from l2p_eval.painting import Job, Model, Pictures, plan_jobs
from l2p_eval.scores import Progress, Score, frechet, geneval, patch_grid, retention

if TYPE_CHECKING:
    from l2p_eval.geneval import GenEvalPrompt
    from l2p_eval.geneval.eyes import Eyes
    from l2p_eval.metrics.features import FeatureExtractor

AGAIN = "source-again"
"""Folder of the source's second set."""
PaintJobs = Callable[["Painted", Sequence[Job], Path], Sequence[Path]]
"""(model, images to paint, folder) -> their files, in order."""


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A model of the comparison: what paints, what it is called, and how it samples, for results.json."""

    title: str
    model: Model
    sampling: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Judges:
    """What scores the images."""

    eyes: "Eyes"
    extractor: "FeatureExtractor"
    patch_size: int  # px, of the L2P model


def compare(
    source: Painted,
    l2p: Painted,
    judges: Judges,
    prompts: "Sequence[GenEvalPrompt]",
    folder: Path,
    paint: PaintJobs,
    *,
    images_per_prompt: int,
    seed: int,
    floor: bool = True,
    progress: Progress,
) -> dict[str, Any]:
    """Score both models; JSON values.

    Args:
        folder: gets the images, in `source/`, `l2p/` and, for the floor, `source-again/`.
        seed: of the first image; the others follow.
        floor: paint a second set by the source.

    Raises:
        EvalError: an image that cannot be judged.
    """
    jobs = plan_jobs([prompt.prompt for prompt in prompts], images_per_prompt, seed)
    results: dict[str, Any] = {}
    pictures: dict[str, Pictures] = {}
    scored: dict[str, Score] = {}
    for name, painted in (("source", source), ("l2p", l2p)):
        pictures[name] = _pictures(painted, jobs, folder / name, paint)
        scored[name] = geneval(
            pictures[name],
            judges.eyes.detector,
            colors=judges.eyes.colors,
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            progress=progress,
        ).whole()
        results[name] = {"sampling": dict(painted.sampling), **scored[name].details}
    reference = pictures["source"].paths
    distance = frechet(pictures["l2p"], judges.extractor, reference=reference, progress=progress)
    results["frechet"] = distance.details["result"]
    if floor:
        again = _pictures(source, other_seeds(jobs), folder / AGAIN, paint)
        nearest = frechet(again, judges.extractor, reference=reference, progress=progress)
        results["frechet_floor"] = nearest.details["result"]
    kept = retention(scored["l2p"].headline, scored["source"].headline, images=len(jobs))
    results["retention"], results["retention_odd"] = kept.share, kept.odd
    results["warnings"] = [f"{name}: {text}" for name in scored for text in scored[name].warnings]
    results["warnings"] += [kept.note] if kept.note else []
    results["patch_grid"] = {}
    for name in pictures:
        try:
            grid = patch_grid(pictures[name], patch_size=judges.patch_size, progress=progress)
            results["patch_grid"][name] = {"name": next(iter(grid.values)), "value": grid.headline}
        except EvalError as error:  # flat images, or patches as large as they are; other scores stand
            results["warnings"].append(f"{name}: no patch grid: {error}")
    return results


def other_seeds(jobs: Sequence[Job]) -> list[Job]:
    """Return the same images with as many other seeds: the next ones or, where there are none, those
    before.
    """
    first, count = min(job.seed for job in jobs), len(jobs)
    fits = first + 2 * count - 1 <= LARGEST_SEED
    prompts = list(dict.fromkeys((job.prompt_index, job.prompt) for job in jobs))
    return plan_jobs(
        [prompt for _, prompt in prompts], count // len(prompts), first + count if fits else first - count
    )


def _pictures(painted: Painted, jobs: Sequence[Job], folder: Path, paint: PaintJobs) -> Pictures:
    return Pictures(
        name=painted.title,
        folder=folder,
        paths=paint(painted, jobs, folder),
        prompts=[job.prompt for job in jobs],
        settings=painted.model.settings,
    )

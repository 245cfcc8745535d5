"""How different the images of one prompt are over its seeds (Fig. 5).

The paper reports LPIPS without saying over which pairs. Here: the mean over all pairs of seeds of a prompt,
then the mean over prompts, of a distance between features. The result's name says which features; only LPIPS
may be called LPIPS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p_eval.errors import EvalError
from l2p_eval.layout import open_image
from l2p_eval.metrics.checks import check_features, finite, unit
from l2p_eval.metrics.features import FeatureExtractor, extract_features
from l2p_eval.metrics.lpips import Lpips


@dataclass(frozen=True, kw_only=True)
class DiversityResult:
    """Mean pairwise distance: LPIPS, or 1 - cosine in [0, 2]; larger is more diverse."""

    name: str  # "LPIPS-alex", "diversity-efficientnet-lite0"
    value: float
    prompts: int
    images_per_prompt: tuple[int, int]  # least and most
    preprocessing: str
    weights_sha256: str

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean of 1 - cos over all pairs of rows of (N, D), N >= 2."""
    check_features("the features of a prompt's images", features, least=2)
    directions = unit(features.double())
    cosines = directions @ directions.T
    n = len(features)
    return finite("diversity", float(1 - (cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))))


def mean_pairwise_lpips(images: Sequence[Any], lpips: Lpips) -> float:
    """Mean LPIPS over all pairs of 2 or more images."""
    pairs = list(combinations(range(len(images)), 2))
    left, right = ([images[pair[side]] for pair in pairs] for side in (0, 1))
    distances = lpips.distances(left, right)
    if not torch.isfinite(distances).all():
        raise EvalError("LPIPS is NaN or infinite; look for broken images or weights")
    return float(distances.double().mean())


def diversity_of(
    images: Mapping[str, Sequence[Path]],
    extractor: FeatureExtractor | Lpips,
    *,
    on_prompt: Callable[[int, int], None] | None = None,
) -> DiversityResult:
    """Diversity of images grouped by prompt.

    Args:
        images: prompt -> its images, two or more.
        extractor: features, compared by their cosine; or LPIPS.
        on_prompt: called with (prompts done, prompts in all).
    """
    if not images:
        raise EvalError("no images to compare")
    distances = []
    for prompt, paths in images.items():
        if len(paths) < 2:
            raise EvalError(f"prompt {prompt!r} has {len(paths)} image; diversity needs 2 seeds or more")
        pictures = [open_image(path) for path in paths]
        if isinstance(extractor, Lpips):
            distances.append(mean_pairwise_lpips(pictures, extractor))
        else:
            distances.append(mean_pairwise_distance(extract_features(extractor, pictures)))
        if on_prompt:
            on_prompt(len(distances), len(images))
    counts = [len(paths) for paths in images.values()]
    return DiversityResult(
        name=extractor.name if isinstance(extractor, Lpips) else f"diversity-{extractor.name}",
        value=sum(distances) / len(distances),
        prompts=len(images),
        images_per_prompt=(min(counts), max(counts)),
        preprocessing=extractor.preprocessing,
        weights_sha256=extractor.weights_sha256,
    )

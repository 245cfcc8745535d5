"""Frechet distance between two sets of images; Table 2 and Fig. 12 report the one on Inception features, FID.

A number means nothing without what defines it, so a result carries its extractor, weights hash, preprocessing
and sample sizes, and its name says which features were used: only Inception features may be called FID.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from l2p_run.errors import raised_as
from l2p_run.settings import check_settings, setting
from PIL import Image
from torch import Tensor

from l2p_eval.errors import EvalError
from l2p_eval.layout import open_image
from l2p_eval.metrics.checks import check_features, finite
from l2p_eval.metrics.features import FeatureExtractor, extract_features


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Random crops in place of whole images, for local detail (Table 2, "FID-patch").

    The paper does not define it; these are the settings of the closest published code. Image number i of both
    sets is cut at the same places.
    """

    size: int = setting(299, ge=1)  # px
    count: int = setting(20, ge=1)  # per image
    seed: int = 42

    def __post_init__(self) -> None:
        """Raise `EvalError` for sizes and counts that are none."""
        raised_as(EvalError)(check_settings)(self)

    @property
    def key(self) -> str:
        """Part of the metric's name, and of what defines it."""
        return f"patch-{self.size}x{self.count}-seed{self.seed}"

    def cut(self, image: Image.Image, index: int) -> list[Image.Image]:
        """Return the crops of image number `index` of a set."""
        if min(image.size) < self.size:
            raise EvalError(
                f"image {index} is {image.width}x{image.height}, smaller than a patch of {self.size} px"
            )
        rng = random.Random(f"{self.seed}:{index}")
        corners = [
            (rng.randint(0, image.width - self.size), rng.randint(0, image.height - self.size))
            for _ in range(self.count)
        ]
        return [image.crop((x, y, x + self.size, y + self.size)) for x, y in corners]


@dataclass(frozen=True, kw_only=True)
class FrechetResult:
    """A Frechet distance and what defines it."""

    name: str  # "FD-efficientnet-lite0"
    value: float
    reference_count: int
    count: int
    dimensions: int
    preprocessing: str
    weights_sha256: str
    patches: str = "none: whole images"  # or `Patches.key`
    samples_per_image: int = 1

    @property
    def rank_deficient(self) -> bool:
        """Fewer samples than dimensions: fine to compare at equal n, not a consistent estimate."""
        return min(self.reference_count, self.count) * self.samples_per_image <= self.dimensions

    def to_row(self) -> dict[str, Any]:
        return asdict(self) | {"rank_deficient": self.rank_deficient}


def frechet_distance(reference: Tensor, features: Tensor) -> float:
    """Return |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) of two samples, (N, D) and (M,
    D).

    With centred samples A, B scaled so that cov_a = A^T A, the last trace is the sum of the singular values
    of A B^T. No matrix square root is taken, so the value is exact and real also when there are fewer samples
    than dimensions. The covariance is the unbiased one (divisor N - 1), as in the FID implementations in use.
    """
    check_features("the reference features", reference)
    check_features("the compared features", features)
    if reference.shape[1] != features.shape[1]:
        given = " and ".join(str(tuple(tensor.shape)) for tensor in (reference, features))
        raise EvalError(f"features must be (N, D) and (M, D), these are {given}")
    if min(len(reference), len(features)) < 2:
        raise EvalError(f"a covariance needs 2 images a side, there are {len(reference)} and {len(features)}")
    mean_a, root_a = _mean_and_root(reference.double())
    mean_b, root_b = _mean_and_root(features.double())
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    value = finite("the Frechet distance", distance.item())
    return max(value, 0.0)  # rounding can leave -1e-15 for equal sets


def frechet_between(
    reference: Sequence[Path],
    images: Sequence[Path],
    extractor: FeatureExtractor,
    *,
    patches: Patches | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> FrechetResult:
    """Return the distance of the image files `images` from the image files `reference`.

    Args:
        patches: compare crops instead of whole images; the sets must then be of equal length and image sizes.
        on_image: called with (images done, images in all).
    """
    if patches and len(reference) != len(images):
        raise EvalError(
            f"patches need as many images as references, there are {len(images)} and {len(reference)}"
        )
    total = len(reference) + len(images)
    sizes: dict[int, tuple[int, int]] = {}

    def features(paths: Sequence[Path], before: int) -> Tensor:
        parts = []
        for index, path in enumerate(paths):
            image = open_image(path)
            if patches and sizes.setdefault(index, image.size) != image.size:
                raise EvalError(
                    f"{path} is {image.width}x{image.height}, its reference"
                    f" {sizes[index][0]}x{sizes[index][1]}; both are cut at the same places: give one size"
                )
            parts.append(extract_features(extractor, patches.cut(image, index) if patches else [image]))
            if on_image:
                on_image(before + index + 1, total)
        return torch.cat(parts) if parts else torch.empty(0, extractor.dimensions)

    return FrechetResult(
        name=metric_name(extractor) + (f"-{patches.key}" if patches else ""),
        value=frechet_distance(features(reference, 0), features(images, len(reference))),
        reference_count=len(reference),
        count=len(images),
        dimensions=extractor.dimensions,
        preprocessing=extractor.preprocessing,
        weights_sha256=extractor.weights_sha256,
        patches=patches.key if patches else "none: whole images",
        samples_per_image=patches.count if patches else 1,
    )


def metric_name(extractor: FeatureExtractor) -> str:
    """Return FID on the published Inception, else FD and what it is on."""
    return "FID" if extractor.name == "inception-2015-12-05" else f"FD-{extractor.name}"


def _mean_and_root(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and a factor R (min(N, D), D) with R^T R = covariance."""
    mean = features.mean(dim=0)
    root = (features - mean) / (len(features) - 1) ** 0.5
    return mean, torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root

"""Inception Score (Salimans et al. 2016; Table 2): exp of the mean KL of p(y|x) from p(y), over splits."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p_eval.errors import EvalError
from l2p_eval.layout import open_image
from l2p_eval.metrics.checks import check_features, check_whole
from l2p_eval.metrics.features import FeatureExtractor, extract_features


@dataclass(frozen=True, kw_only=True)
class InceptionScoreResult:
    """Mean over the splits, and their standard deviation with divisor n - 1 (torchmetrics')."""

    name: str  # "IS" with the published weights
    value: float
    deviation: float
    splits: int
    seed: int  # of the shuffle before the images are split
    count: int
    preprocessing: str
    weights_sha256: str

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


def inception_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Return (mean, standard deviation) over `splits` parts of (N, classes) logits, shuffled by `seed`.

    Part i is [i N // splits, (i + 1) N // splits), as in the original and in torch-fidelity: always as many
    parts as asked for, and of nearly equal size.
    """
    check_whole(splits=splits, seed=seed)
    check_features("the logits", logits)
    if splits < 1 or len(logits) < splits:
        raise EvalError(f"{splits} splits need as many images at least, the logits are {tuple(logits.shape)}")
    if logits.shape[1] < 2:
        raise EvalError("the logits are of one class; an Inception Score needs 2 or more")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    scores = []
    shuffled, count = logits.double()[order], len(logits)
    for index in range(splits):
        part = shuffled[index * count // splits : (index + 1) * count // splits]
        log_p = part.log_softmax(dim=1)
        log_marginal = log_p.logsumexp(dim=0, keepdim=True) - torch.log(torch.tensor(float(len(part))))
        scores.append((log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp())
    stacked = torch.stack(scores)
    return float(stacked.mean()), float(stacked.std()) if len(scores) > 1 else 0.0


def inception_score_of(
    images: Sequence[Path],
    classifier: FeatureExtractor,
    *,
    splits: int = 10,
    seed: int = 0,
    on_image: Callable[[int, int], None] | None = None,
) -> InceptionScoreResult:
    """Inception Score of image files.

    Args:
        classifier: `inception(weights, output="logits_unbiased")`.
        on_image: called with (images done, images in all).
    """
    logits = []
    for index, path in enumerate(images):
        logits.append(extract_features(classifier, [open_image(path)]))
        if on_image:
            on_image(index + 1, len(images))
    if not logits:
        raise EvalError("no images to score")
    value, deviation = inception_score(torch.cat(logits), splits=splits, seed=seed)
    published = classifier.name == "inception-2015-12-05"
    return InceptionScoreResult(
        name="IS" if published else f"IS-{classifier.name}",
        value=value,
        deviation=deviation,
        splits=splits,
        seed=seed,
        count=len(images),
        preprocessing=classifier.preprocessing,
        weights_sha256=classifier.weights_sha256,
    )

"""The Frechet distance by singular values against matrix square roots: time and difference.

    uv run benchmarks/eval_frechet.py

Prints ratios from one run. All get the same features; scipy's `sqrtm` is what pytorch-fid and its kin take,
torchmetrics takes eigenvalues of the product of the covariances.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from l2p_eval.metrics.frechet import frechet_distance
from scipy import linalg
from torchmetrics.image.fid import _compute_fid


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    double = features.double()
    return double.mean(dim=0), torch.cov(double.T)


def by_sqrtm(reference: torch.Tensor, features: torch.Tensor) -> float:
    """|m_a - m_b|^2 + tr(a + b - 2 sqrtm(a b)), the textbook's way."""
    (mean_a, a), (mean_b, b) = ((m.numpy(), c.numpy()) for m, c in map(_moments, (reference, features)))
    root = linalg.sqrtm(a @ b)
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(a + b) - 2 * np.trace(np.real(root)))


def by_eigenvalues(reference: torch.Tensor, features: torch.Tensor) -> float:
    """torchmetrics' own function."""
    mean_a, a = _moments(reference)
    mean_b, b = _moments(features)
    return float(_compute_fid(mean_a, a, mean_b, b))


def timed(run: Callable[[torch.Tensor, torch.Tensor], float], *pair: torch.Tensor) -> tuple[float, float]:
    """(seconds, value)."""
    started = time.perf_counter()
    value = run(*pair)
    return time.perf_counter() - started, value


def main() -> None:
    """One line a setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--images", type=int, nargs="+", default=[120, 2000])
    options = parser.parse_args()
    for count in options.images:
        generator = torch.Generator().manual_seed(0)
        shape = (count, options.dimensions)
        pair = [torch.randn(shape, generator=generator), 1.2 * torch.randn(shape, generator=generator) + 0.1]
        seconds, value = timed(frechet_distance, *pair)
        print(f"n = {count} a side, {options.dimensions} dimensions: {value:.4f}")
        for name, other in (("sqrtm", by_sqrtm), ("torchmetrics", by_eigenvalues)):
            theirs, reference = timed(other, *pair)
            difference = abs(value - reference) / reference
            print(f"  {name}: {theirs / seconds:.1f} x our time, relative difference {difference:.1e}")


if __name__ == "__main__":
    main()

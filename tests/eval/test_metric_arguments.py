"""What a metric cannot compute with is one line, and never a number that means nothing."""

from typing import Any

import pytest
import torch
from l2p_eval.errors import EvalError
from l2p_eval.metrics.checks import unit
from l2p_eval.metrics.diversity import mean_pairwise_distance
from l2p_eval.metrics.frechet import Patches, frechet_distance
from l2p_eval.metrics.inception_score import inception_score
from l2p_eval.metrics.patch_grid import jumps

FEATURES = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
NO_FEATURES: list[Any] = [
    None,
    5,
    FEATURES.numpy(),
    FEATURES[0],
    FEATURES[:0],
    FEATURES[:, :0],
    FEATURES.long(),
    FEATURES > 0,
    FEATURES.to(torch.complex64),
    FEATURES / 0,
    torch.full_like(FEATURES, float("nan")),
]


@pytest.mark.parametrize("features", NO_FEATURES)
def test_what_are_no_features_is_refused(features: Any) -> None:
    for metric in (
        lambda: frechet_distance(FEATURES, features),
        lambda: frechet_distance(features, FEATURES),
        lambda: mean_pairwise_distance(features),
        lambda: inception_score(features, splits=2),
    ):
        with pytest.raises(EvalError) as raised:
            metric()
        assert "\n" not in str(raised.value)


def test_features_too_large_to_be_squared_are_refused() -> None:
    for metric in (
        lambda: frechet_distance(FEATURES, FEATURES.double() * 1e200),
        lambda: mean_pairwise_distance(FEATURES.double() * 1e200),
    ):
        with pytest.raises(EvalError, match="too large to be squared"):
            metric()


def test_equal_images_without_features_are_not_called_diverse() -> None:
    """Zeros have no direction; 1 - cos of them was 1, the most there is."""
    with pytest.raises(EvalError, match="all zero"):
        mean_pairwise_distance(torch.zeros(5, 4))


@pytest.mark.parametrize("options", [{"splits": 1.5}, {"splits": "2"}, {"splits": True}, {"seed": 1.5}])
def test_an_inception_score_of_such_parts_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(EvalError, match=f"{next(iter(options))} is"):
        inception_score(FEATURES, **options)


def test_one_class_has_no_inception_score() -> None:
    with pytest.raises(EvalError, match="one class"):
        inception_score(FEATURES[:, :1], splits=2)


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": 1.5}, {"count": 0}, {"count": "3"}, {"seed": None}]
)
def test_patches_of_no_size_or_count_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(EvalError, match=f"{next(iter(options))} is"):
        Patches(**options)


@pytest.mark.parametrize("patch_size", [0, 1, 1.5, "16", True, 64])
def test_a_grid_of_such_patches_is_refused(patch_size: Any) -> None:
    with pytest.raises(EvalError):
        jumps(torch.rand(3, 64, 64), patch_size)


def test_an_embedding_of_zeros_has_no_similarity() -> None:
    """Its cosine with every text was 0, as if the picture showed something else."""
    with pytest.raises(EvalError, match="all zero"):
        unit(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    torch.testing.assert_close(unit(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))

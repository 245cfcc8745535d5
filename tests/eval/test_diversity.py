"""Diversity over seeds, by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from l2p_eval.errors import EvalError
from l2p_eval.metrics.diversity import diversity_of, mean_pairwise_distance
from l2p_eval.metrics.features import load_extractor
from PIL import Image


def test_pairwise_distance_by_hand() -> None:
    assert mean_pairwise_distance(torch.tensor([[1.0, 0.0], [0.0, 2.0]])) == pytest.approx(1.0)
    assert mean_pairwise_distance(torch.tensor([[1.0, 0.0], [3.0, 0.0]])) == pytest.approx(0.0)
    three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # distances 1, 2, 1
    assert mean_pairwise_distance(three) == pytest.approx(4 / 3)


def test_equal_images_have_none_and_different_ones_have_some(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    paths = []
    for i in range(2):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(paths[-1])
    extractor = load_extractor("efficientnet-lite0")
    assert diversity_of({"a": [paths[0]] * 2}, extractor).value == pytest.approx(0, abs=1e-5)
    result = diversity_of({"a": paths, "b": paths[:1] * 3}, extractor)
    assert 0 < result.value < 1
    assert result.images_per_prompt == (2, 3)
    assert result.name == "diversity-efficientnet-lite0"


def test_too_few_images_are_refused() -> None:
    with pytest.raises(EvalError, match="no images"):
        diversity_of({}, load_extractor("efficientnet-lite0"))
    with pytest.raises(EvalError, match="2 seeds or more"):
        diversity_of({"a": [Path("x.png")]}, load_extractor("efficientnet-lite0"))

"""Inception by the user's file, and the Inception Score against closed forms and torchmetrics."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from l2p_eval.errors import EvalError
from l2p_eval.layout import open_image
from l2p_eval.metrics.features import extract_features
from l2p_eval.metrics.frechet import frechet_between, metric_name
from l2p_eval.metrics.inception import inception
from l2p_eval.metrics.inception_score import inception_score, inception_score_of


def test_the_features_are_torch_fidelitys_and_other_weights_are_not_called_fid(
    inception_weights: Path, scenes: list[Path]
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchvision.transforms.functional import pil_to_tensor

    extractor = inception(inception_weights)
    ours = extract_features(extractor, [open_image(path) for path in scenes[:2]])
    network = FeatureExtractorInceptionV3(
        "x", ["2048"], feature_extractor_weights_path=str(inception_weights)
    )
    pixels = torch.stack([pil_to_tensor(open_image(path)) for path in scenes[:2]])
    torch.testing.assert_close(ours, network(pixels)[0].flatten(1), rtol=1e-4, atol=1e-5)
    assert metric_name(extractor) == "FD-inception-v3"
    result = frechet_between(scenes[:2], scenes[:2], extractor)
    assert (result.name, result.dimensions, result.rank_deficient) == ("FD-inception-v3", 2048, True)
    assert result.value == pytest.approx(0, abs=1e-6)


def test_the_score_has_its_closed_forms() -> None:
    certain = 200.0 * torch.eye(8).repeat(4, 1)  # every class as often, each without doubt
    assert inception_score(certain, splits=1)[0] == pytest.approx(8)
    assert inception_score(torch.ones(32, 8), splits=4) == pytest.approx((1.0, 0.0))
    half = torch.tensor([[0.0, 0.0], [200.0, 0.0]])  # p(y|x) = (1/2, 1/2) and (1, 0); p(y) = (3/4, 1/4)
    kl = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25) + math.log(1 / 0.75)) / 2
    assert inception_score(half, splits=1)[0] == pytest.approx(math.exp(kl))


def test_the_score_equals_torchmetrics_on_the_same_splits() -> None:
    from torchmetrics.image.inception import InceptionScore

    class Logits(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :6].float() / 20

    images = torch.randint(
        0, 255, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    metric = InceptionScore(feature=Logits(), splits=4)
    metric.update(images)
    torch.manual_seed(5)  # of torchmetrics' own shuffle
    mean, deviation = metric.compute()
    ours = inception_score(Logits()(images), splits=4, seed=5)
    assert ours == pytest.approx((float(mean), float(deviation)), rel=1e-5)


@pytest.mark.parametrize(("count", "splits"), [(13, 4), (11, 10), (23, 7), (103, 10), (5, 5)])
def test_there_are_as_many_parts_as_asked_for_and_of_nearly_equal_size(count: int, splits: int) -> None:
    """Against NumPy on the original's bounds; one part too few or unequal ones give another mean."""
    logits = torch.randn(count, 9, generator=torch.Generator().manual_seed(count)) * 3
    order = torch.randperm(count, generator=torch.Generator().manual_seed(2))
    p = np.exp(logits.double().numpy()[order.numpy()])
    p /= p.sum(axis=1, keepdims=True)
    scores = []
    for i in range(splits):
        part = p[i * count // splits : (i + 1) * count // splits]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1).mean()))
    expected = (np.mean(scores), np.std(scores, ddof=1))
    assert inception_score(logits, splits=splits, seed=2) == pytest.approx(expected)


def test_the_result_says_what_defines_it(inception_weights: Path, scenes: list[Path]) -> None:
    classifier = inception(inception_weights, output="logits_unbiased")
    result = inception_score_of(scenes[:4], classifier, splits=2)
    assert result.name == "IS-inception-v3" and result.value >= 1
    assert (result.count, result.splits, len(result.weights_sha256)) == (4, 2, 64)


def test_bad_input_is_one_line(tmp_path: Path, scenes: list[Path]) -> None:
    with pytest.raises(EvalError, match="no Inception weights"):
        inception(tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(EvalError, match="holds no Inception-v3 weights"):
        inception(tmp_path / "bad.pth")
    with pytest.raises(EvalError, match="10 splits need as many images"):
        inception_score(torch.zeros(4, 8))
    with pytest.raises(EvalError, match="NaN"):
        inception_score(torch.full((10, 8), float("nan")))

"""LPIPS with a random backbone against torchmetrics' own call, and the diversity made of it."""

from pathlib import Path

import pytest
import torch
from l2p_eval.errors import EvalError
from l2p_eval.layout import open_image
from l2p_eval.metrics.diversity import diversity_of, mean_pairwise_lpips
from l2p_eval.metrics.lpips import Lpips


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("squeeze") / "squeezenet.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


def test_the_users_backbone_is_what_computes(squeezenet: Path, scenes: list[Path]) -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    lpips = Lpips(squeezenet, "squeeze", size=64)
    images = [open_image(path) for path in scenes[:2]]
    distance = lpips.distances(images[:1], images[1:])
    torch.manual_seed(0)  # the same random backbone, built by torchmetrics itself
    reference = _LPIPS(pretrained=True, net="squeeze", pnet_rand=True).eval()
    pair = [lpips._prepare(image)[None] for image in images]
    with torch.inference_mode():
        expected = reference(*pair, normalize=True)
    assert float(distance) == pytest.approx(float(expected), rel=1e-4)
    assert float(lpips.distances(images[:1], images[:1])) == pytest.approx(0, abs=1e-7)


def test_diversity_is_the_mean_over_pairs_then_over_prompts(squeezenet: Path, scenes: list[Path]) -> None:
    lpips = Lpips(squeezenet, "squeeze", size=32)
    images = [open_image(path) for path in scenes[:3]]
    pairs = [float(lpips.distances([images[i]], [images[j]])) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert mean_pairwise_lpips(images, lpips) == pytest.approx(sum(pairs) / 3, rel=1e-4)
    result = diversity_of({"a": scenes[:3], "b": scenes[:1] * 2}, lpips)
    assert result.value == pytest.approx(sum(pairs) / 6, rel=1e-4)
    assert (result.name, len(result.weights_sha256)) == ("LPIPS-squeeze", 64)


def test_other_weights_are_refused(squeezenet: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"give torchvision's alexnet"):
        Lpips(tmp_path / "none.pth")
    with pytest.raises(EvalError, match="does not hold torchvision's alex weights"):
        Lpips(squeezenet, "alex")
    with pytest.raises(EvalError, match="LPIPS at 0 px"):
        Lpips(squeezenet, "squeeze", size=0)


def test_a_distance_that_is_no_number_is_refused(
    squeezenet: Path, scenes: list[Path], tmp_path: Path
) -> None:
    stored = torch.load(squeezenet, weights_only=True)
    torch.save(
        {name: torch.full_like(value, torch.nan) for name, value in stored.items()}, tmp_path / "nan.pth"
    )
    with pytest.raises(EvalError, match="LPIPS is NaN"):
        diversity_of({"a": scenes[:2]}, Lpips(tmp_path / "nan.pth", "squeeze", size=64))

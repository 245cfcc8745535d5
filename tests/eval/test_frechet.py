"""The Frechet distance against a closed form and two independent implementations."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_eval.errors import EvalError
from l2p_eval.metrics.features import extract_features, load_extractor
from l2p_eval.metrics.frechet import Patches, frechet_between, frechet_distance
from PIL import Image
from torch import Tensor, nn


def sample(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + torch.randn(
        d, generator=generator
    )


def by_matrix_square_root(a: Tensor, b: Tensor) -> float:
    """The textbook formula, with scipy's matrix square root."""
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_one_dimension_has_a_closed_form() -> None:
    a, b = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    # means 2 and 2, standard deviations 2 and 1: the distance is (2 - 1)^2
    assert frechet_distance(a, b) == pytest.approx(1.0)
    assert frechet_distance(a, b + 3) == pytest.approx(10.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 12), st.integers(0, 10_000))
def test_it_equals_the_matrix_square_root_form(n: int, m: int, d: int, seed: int) -> None:
    """Also with fewer samples than dimensions, and with unequal sizes."""
    a, b = sample(max(n, d + 2), d, seed), sample(max(m, d + 2), d, seed + 1)
    if d > 1:
        assert frechet_distance(a, b) == pytest.approx(by_matrix_square_root(a, b), rel=1e-6, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [8, 64])
def test_it_equals_torchmetrics(n: int) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flatten(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    a, b = sample(n, 12, 0), sample(n, 12, 1)
    oracle = FrechetInceptionDistance(feature=Flatten()).set_dtype(torch.float64)
    oracle.update(a.reshape(n, 3, 2, 2), real=True)
    oracle.update(b.reshape(n, 3, 2, 2), real=False)
    assert frechet_distance(a, b) == pytest.approx(oracle.compute().item(), rel=1e-5)


def test_real_features_tell_scenes_from_noise(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """More noise on the same pictures is further away; the result names what defines it."""
    generator = np.random.default_rng(0)
    clean = [np.full((64, 64, 3), 40 + 10 * i, dtype=np.float64) for i in range(12)]
    for image in clean:
        image[16:40, 20:50] = generator.uniform(0, 255, 3)
    folders = {}
    for name, strength in (("clean", 0), ("little", 10), ("much", 80)):
        folders[name] = []
        for i, image in enumerate(clean):
            noisy = image + strength * generator.standard_normal(image.shape)
            path = tmp_path / f"{name}-{i}.png"
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
            folders[name].append(path)
    extractor = load_extractor("efficientnet-lite0")
    little, much = (
        frechet_between(folders["clean"], folders[name], extractor) for name in ("little", "much")
    )
    assert 0 < little.value < much.value
    assert little.name == "FD-efficientnet-lite0"
    assert little.rank_deficient
    assert (little.reference_count, little.count, little.dimensions) == (12, 12, 1280)
    assert len(little.weights_sha256) == 64


def test_patches_are_cut_at_the_same_places_and_named_in_the_key(tmp_path) -> None:  # type: ignore[no-untyped-def]
    generator = np.random.default_rng(1)
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(paths[-1])
    extractor = load_extractor("efficientnet-lite0")
    patches = Patches(size=32, count=2, seed=7)
    same = frechet_between(paths, paths, extractor, patches=patches)
    assert same.name == "FD-efficientnet-lite0-patch-32x2-seed7"
    assert same.value == pytest.approx(0, abs=1e-6)
    image = Image.open(paths[0])
    assert [p.tobytes() for p in patches.cut(image, 0)] == [p.tobytes() for p in patches.cut(image, 0)]
    assert patches.cut(image, 0)[0].tobytes() != patches.cut(image, 1)[0].tobytes()
    with pytest.raises(EvalError, match="smaller than a patch of 299 px"):
        frechet_between(paths, paths, extractor, patches=Patches())
    with pytest.raises(EvalError, match="as many images as references"):
        frechet_between(paths, paths[:2], extractor, patches=patches)


def test_features_do_not_depend_on_the_batch() -> None:
    extractor = load_extractor("efficientnet-lite0")
    images = [Image.new("RGB", (32 + 8 * (i % 2), 32), (30 * i, 100, 200)) for i in range(4)]
    together = extract_features(extractor, images, batch_size=3)
    alone = extract_features(extractor, images, batch_size=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_bad_features_are_refused() -> None:
    good = sample(8, 4, 0)
    with pytest.raises(EvalError, match="2 images a side"):
        frechet_distance(good[:1], good)
    with pytest.raises(EvalError, match="NaN or infinity"):
        frechet_distance(good, good / 0)
    with pytest.raises(EvalError, match=r"\(N, D\)"):
        frechet_distance(good, good[:, :3])
    with pytest.raises(EvalError, match="unknown feature extractor"):
        load_extractor("inception")


def test_the_network_of_the_frechet_distance_goes_to_the_device() -> None:
    """ "meta" is in the GPU's place."""
    network = load_extractor("efficientnet-lite0").to("meta").network
    assert {tensor.device.type for tensor in (*network.parameters(), *network.buffers())} == {"meta"}

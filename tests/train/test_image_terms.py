"""The optional terms of the loss compare images, reach the weights, and are not there unless asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import L2PTransformer, convert
from l2p_train import TrainConfig, TrainError, train
from l2p_train.image_terms import (
    ImageTerms,
    frequency_distance,
    image_end_weight,
    image_terms,
    load_features,
    perceptual_distance,
)
from l2p_train.objective import l2p_loss, l2p_losses
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from l2p_mini.architecture import write_untrained_source

    folder = tmp_path_factory.mktemp("terms")
    source = write_untrained_source(folder / "source", seed=0, dim=64, n_heads=2, n_kv_heads=2, n_layers=2)
    convert(source, folder / "model", head_channels=(12, 8, 8, 8))
    return folder / "model"


def settings(model: Path, corpus: Path, output: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "steps": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "trainable": 1,
        "zero_stage": 0,
        "max_sequence_length": 32,
        "checkpoint_every": 0,
        "sample_every": 0,
        "tensorboard": False,
    }
    return TrainConfig(model=model, corpus=corpus, output=output, **values | changes)


def checks(count: int = 2, side: int = 64) -> Tensor:
    """Checks of 8 px, (N, 3, side, side)."""
    places = torch.arange(side) // 8
    board = ((places[:, None] + places[None]) % 2) * 1.6 - 0.8
    return board.expand(count, 3, -1, -1).contiguous()


def test_equal_images_have_no_distance_and_blurred_ones_have_one() -> None:
    sharp = checks()
    blurred = torch.nn.functional.avg_pool2d(sharp, 9, stride=1, padding=4)
    features = load_features(None)
    for distance in (lambda a, b: perceptual_distance(features, a, b), frequency_distance):
        torch.testing.assert_close(distance(sharp, sharp), torch.zeros(2), rtol=0, atol=1e-6)
        assert (distance(blurred, sharp) > 0.01).all()


def test_a_detail_beside_its_place_costs_eq_5_more_than_none_and_the_frequency_term_less() -> None:
    wanted = checks()
    moved, none = wanted.roll(4, dims=-1), torch.zeros_like(wanted)
    assert (moved - wanted).square().mean() > (none - wanted).square().mean()
    assert (frequency_distance(moved, wanted) < 0.1 * frequency_distance(none, wanted)).all()


def test_samples_near_the_image_count_most() -> None:
    sigma = torch.tensor([0.0, 0.2, 0.5, 1.0])
    weights = image_end_weight(sigma, 2.0)
    assert weights.tolist() == pytest.approx([1, 0.64 / (0.64 + 0.16), 0.2, 0])


@pytest.mark.parametrize("shift", [0.5, 1.0, 4.0])
def test_samples_near_the_image_are_compared_whatever_else_is_in_the_batch(shift: float) -> None:
    seen: list[int] = []

    def features(images: Tensor) -> list[Tensor]:
        seen.append(len(images))
        return [images]

    terms = ImageTerms(perceptual=1.0, frequency=0.0, shift=shift, features=features)
    sigma = torch.tensor([0.9, 0.1, 0.3, 0.95, 0.6])
    x_0, velocity = checks(5), torch.randn(5, 3, 64, 64)
    added = terms(x_0, sigma, velocity.requires_grad_(), x_0)
    near = [level <= shift / (1 + shift) for level in sigma.tolist()]
    assert near == (added > 0).tolist()
    assert set(seen) == {sum(near)}
    parts = (x_0, sigma, velocity.detach(), x_0)
    alone = [float(terms(*(part[i : i + 1] for part in parts))) for i in range(5)]
    assert added.tolist() == pytest.approx(alone, rel=1e-4)
    added.sum().backward()
    assert torch.isfinite(velocity.grad).all()


@pytest.mark.parametrize("name", ["perceptual", "frequency"])
def test_the_gradient_of_a_term_reaches_the_head_and_the_trained_blocks(initial: Path, name: str) -> None:
    model: Any = L2PTransformer.from_pretrained(initial / "transformer")
    torch.nn.init.normal_(model.detailer_head.out_conv.weight, std=0.1)  # at first it reads no features
    weights = {"perceptual": 0.0, "frequency": 0.0} | {name: 1.0}
    terms = ImageTerms(**weights, shift=1.0, features=load_features(None))
    x_0, sigma = checks(), torch.tensor([0.2, 0.6])
    _, added = l2p_losses(
        model, x_0, torch.randn_like(x_0), sigma, [{"caption": torch.zeros(3, 128)}] * 2, terms
    )
    assert added is not None
    added.mean().backward()
    for part in (model.detailer_head.enc1[0].weight, model.detailer_head.out_conv.weight):
        assert part.grad.abs().sum() > 0
    assert model.trunk.layers[0].feed_forward.w1.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in terms.features.parameters())  # type: ignore[union-attr]


def test_without_a_weight_the_loss_is_eq_5_bit_by_bit_and_nothing_is_loaded(
    initial: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    config = settings(initial, tiny_corpus, tmp_path)
    assert image_terms(config, 3.0, torch.device("cpu")) is None
    x_0, noise, sigma = checks(), torch.randn(2, 3, 64, 64), torch.tensor([0.1, 0.7])
    model = lambda x_t, sigma, conditioning: 0.3 * x_t  # noqa: E731
    loss, added = l2p_losses(model, x_0, noise, sigma, [{}] * 2)
    assert added is None
    assert torch.equal(loss, l2p_loss(model, x_0, noise, sigma, [{}] * 2))
    x_t = (1 - sigma.view(-1, 1, 1, 1)) * x_0 + sigma.view(-1, 1, 1, 1) * noise
    expected = torch.nn.functional.mse_loss(0.3 * x_t, noise - x_0, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_a_weight_of_zero_trains_the_same_model_and_another_weight_another_one(
    initial: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    models = {}
    for name, changes in (
        ("none", {}),
        ("zero", {"perceptual_weight": 0.0, "frequency_weight": 0.0}),
        ("perceptual", {"perceptual_weight": 1.0}),
        ("frequency", {"frequency_weight": 1.0}),
    ):
        train(settings(initial, tiny_corpus, tmp_path / name, **changes))
        models[name] = load_file(tmp_path / name / "model" / WEIGHTS)
    same = lambda name: all(torch.equal(models[name][key], value) for key, value in models["none"].items())  # noqa: E731
    assert same("zero")
    assert not same("perceptual")
    assert not same("frequency")


def test_terms_that_count_later_leave_the_steps_before_alone(
    initial: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    losses = {}
    for name, changes in (
        ("none", {}),
        ("at once", {"frequency_weight": 1.0}),
        ("later", {"frequency_weight": 1.0, "image_terms_from": 0.5}),
    ):
        config = settings(initial, tiny_corpus, tmp_path / name, steps=4, log_every=1, **changes)
        train(config)
        rows = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [row["loss"] for row in rows if row["event"] == "step"]
    # A step's loss is that of the weights before it: the first one that differs comes after the first term.
    assert losses["later"][:3] == losses["none"][:3] and losses["later"][3] != losses["none"][3]
    assert losses["at once"][0] == losses["none"][0] and losses["at once"][1] != losses["none"][1]


def test_a_delay_without_a_term_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"image_terms_from is 0\.5, and there is no term"):
        settings(tmp_path, tmp_path, tmp_path, image_terms_from=0.5)


def test_features_come_from_a_directory_of_transformers(tmp_path: Path) -> None:
    from transformers import ResNetBackbone, ResNetConfig

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"
    )
    ResNetBackbone(config).save_pretrained(tmp_path / "backbone")
    features = load_features(tmp_path / "backbone")
    maps = features(checks())
    assert [tuple(each.shape[2:]) for each in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert (perceptual_distance(features, -checks(), checks()) > 0).all()
    file = tmp_path / "backbone" / "model.safetensors"
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[1:]), file, metadata={"format": "pt"})
    with pytest.raises(TrainError, match=r"lacks 1 tensors, such as"):
        load_features(tmp_path / "backbone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError, match=r"no vision backbone of transformers as safetensors"):
        load_features(tmp_path / "empty")
    torch.save({}, tmp_path / "backbone" / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(TrainError, match=r"as safetensors"):
        load_features(tmp_path / "backbone")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"perceptual_weight": -0.1}, "perceptual_weight is -0.1; it must be at least 0"),
        ({"frequency_weight": float("nan")}, "frequency_weight is nan; it must be a finite number"),
        ({"perceptual_features": Path("nowhere")}, "perceptual_weight is 0"),
        ({"perceptual_weight": 1.0, "perceptual_features": Path("nowhere")}, "no directory"),
        ({"frequency_weight": 1.0, "distil_guidance": 2.0}, "leave them or distil_guidance"),
    ],
)
def test_weights_that_cannot_be_meant_are_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(TrainError, match=words) as caught:
        settings(tmp_path, tmp_path, tmp_path, **changes)
    assert "\n" not in str(caught.value)

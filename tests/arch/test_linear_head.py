"""The plain linear head of sec. 3.3's comparison works wherever a Detailer Head may stand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import (
    ArchError,
    L2PPipeline,
    L2PTransformer,
    convert,
    export_public,
    pixels_to_patches,
    upscale,
)
from l2p_arch.linear_head import LinearHead
from l2p_arch.surgery.starts import check_initialisation

TINY: dict[str, Any] = {
    "dim": 32,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 1,
    "n_kv_heads": 1,
    "cap_feat_dim": 8,
    "axes_dims": [8, 12, 12],
}
HEAD = ["detailer_head.linear.bias", "detailer_head.linear.weight"]


@pytest.fixture(scope="module")
def converted(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("linear") / "model"
    convert(untrained_source, out, head_channels=(), seed=1)
    return out


def test_the_patches_of_the_output_are_linear_in_the_tokens() -> None:
    torch.manual_seed(0)
    head = LinearHead(5, 4)
    features = torch.randn(2, 5, 3, 6)
    weight, bias = head.linear.weight.flatten(1), head.linear.bias
    expected = torch.einsum("od,bdhw->bohw", weight, features) + bias[:, None, None]
    output = head(torch.zeros(2, 3, 12, 24), features)
    assert output.shape == (2, 3, 12, 24)
    torch.testing.assert_close(pixels_to_patches(output, 4), expected)


def test_the_velocity_is_the_signed_output_and_every_trainable_end_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = L2PTransformer("z-image", TINY, 4, head_channels=())
    for name in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(model.trunk, name))
    seen = []
    model.detailer_head.register_forward_hook(lambda *hooked: seen.append(hooked))
    velocity = model(
        torch.randn(2, 3, 12, 20), torch.tensor([0.2, 0.9]), [{"caption": torch.randn(3, 8)}] * 2
    )
    (_, (_, features), raw) = seen[0]
    assert features.shape == (2, 32, 3, 5)
    assert torch.equal(velocity, -raw)  # Z-Image's sign
    velocity.square().mean().backward()
    assert "detailer_head" in model.shallow_names()
    for name, parameter in model.named_parameters():
        if name.startswith(("detailer_head.", "trunk.all_x_embedder.", "trunk.layers.")):
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_tiling_and_checkpointing_change_nothing() -> None:
    torch.manual_seed(0)
    model = L2PTransformer("z-image", TINY, 4, head_channels=())
    for name in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(model.trunk, name))
    inputs = (torch.randn(1, 3, 24, 16), torch.tensor([0.5]), [{"caption": torch.randn(3, 8)}])
    whole = model(*inputs)
    model.detailer_head.enable_tiling(8)
    model.enable_gradient_checkpointing()
    assert torch.equal(model(*inputs), whole)


def test_surgery_reports_the_linear_map_as_new_and_a_saved_model_is_the_same(
    untrained_source: Path, converted: Path, tmp_path: Path
) -> None:
    report = convert(untrained_source, tmp_path / "again", head_channels=(), seed=1)
    assert sorted(record.name for record in report.new if "head" in record.name) == HEAD
    shapes = {record.name: record.shape for record in report.new}
    assert shapes["detailer_head.linear.weight"] == (3 * 16**2, 192, 1, 1)
    model = L2PTransformer.from_pretrained(converted / "transformer")
    assert isinstance(model.detailer_head, LinearHead)
    model.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "again/transformer", tmp_path / "saved"):
        other = L2PTransformer.from_pretrained(path)
        assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())
    assert "a plain linear head on top" in (converted / "README.md").read_text(encoding="utf-8")


def test_a_model_with_a_linear_head_draws(converted: Path) -> None:
    pipeline = L2PPipeline.from_pretrained(converted)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a", height=32, width=48, num_inference_steps=2, seeds=[0], output_type="pt").images
    assert image.shape == (1, 3, 32, 48)
    assert torch.isfinite(image).all()


def test_a_fitted_start_with_zero_output_says_zero(untrained_source: Path, tmp_path: Path) -> None:
    report = convert(
        untrained_source,
        tmp_path / "out",
        head_channels=(),
        initialisation="zero-output+fitted",
        calibration_images=torch.rand(12, 3, 64, 64) * 2 - 1,
    )
    assert 0 < report.measures["latent_variance_explained"] <= 1
    model = L2PTransformer.from_pretrained(tmp_path / "out/transformer")
    with torch.no_grad():
        velocity = model(torch.randn(1, 3, 32, 32), torch.tensor([0.5]), [{"caption": torch.randn(4, 128)}])
    assert not velocity.any()


@pytest.mark.parametrize("start", ["kaiming", "detail", "gated", "fitted+gated"])
def test_starts_of_the_detailer_head_are_refused(untrained_source: Path, tmp_path: Path, start: str) -> None:
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ArchError, match="plain linear one") as raised:
        convert(
            untrained_source,
            tmp_path / "out",
            head_channels=(),
            initialisation=start,
            calibration_images=images,
        )
    assert "use default, fitted, fitted-noise, zero-output" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    check_initialisation(start, images)  # of no known head: it may suit


def test_what_only_a_detailer_head_has_is_refused() -> None:
    with torch.device("meta"), pytest.raises(ArchError, match="belong to a Detailer Head"):
        L2PTransformer("z-image", TINY, 4, head_channels=(), head_decoder_floor=16)


def test_there_is_no_public_layout_to_export_to(converted: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchError, match="plain linear head has no public layout"):
        export_public(converted, tmp_path / "one.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_larger_patch_may_bring_a_detailer_head(converted: Path, tmp_path: Path) -> None:
    report = upscale(converted, tmp_path / "larger", patch_size=32, head_channels=(4, 4, 4, 4, 4))
    assert sorted(record.name for record in report.dropped if "head" in record.name) == HEAD
    L2PTransformer.from_pretrained(tmp_path / "larger/transformer")

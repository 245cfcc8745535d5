"""Weights in 8 bits: smaller files that paint nearly the same, with head, embedder and norms untouched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, L2PTransformer, convert, export_public, quantise, upscale
from l2p_arch.cli import main
from l2p_arch.quantisation import quantised


@pytest.fixture(scope="module")
def model(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "model"
    convert(untrained_source, out, head_channels=(8, 8, 8, 8))
    return out


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.5 / 127), ("fp8", 1 / 16)])
def test_a_weight_comes_back_within_half_a_step_of_its_row(kind: str, error: float) -> None:
    weight = (
        torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 64)[:, None]
    )
    weight[5] = 0
    values, scale = quantised(weight, kind)
    stored = values if kind == "int8" else values.view(torch.float8_e4m3fn)
    back = stored.float() * scale.float()[:, None]
    largest = weight.abs().amax(dim=1, keepdim=True)
    bound = largest if kind == "int8" else weight.abs() + largest * 2**-9
    assert bool(((back - weight).abs() <= 1.02 * error * bound + 1e-30).all())
    assert not back[5].any()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantised_model_is_smaller_and_answers_nearly_the_same(
    model: Path, tmp_path: Path, kind: str
) -> None:
    sizes = quantise(model, tmp_path / "small", kind=kind)
    assert sizes["after"] < 0.8 * sizes["before"]
    whole = L2PTransformer.from_pretrained(model / "transformer").eval()
    small = L2PTransformer.from_pretrained(tmp_path / "small/transformer").eval()
    again = L2PTransformer.from_pretrained(tmp_path / "small/transformer", dtype=torch.bfloat16)
    for loaded, floats in ((small, torch.float32), (again, torch.bfloat16)):
        kinds = {name: value.dtype for name, value in loaded.named_parameters()}
        eight = [name for name in kinds if kinds[name] == torch.int8]
        assert len(eight) > 10
        assert all(name.startswith("trunk.layers.") for name in eight)
        assert not any("norm" in name or "adaLN" in name for name in eight)
        assert {kinds[name] for name in kinds if name not in eight} <= {floats, torch.bfloat16}
    width = whole.config["trunk_config"]["cap_feat_dim"]
    generator = torch.Generator().manual_seed(1)
    inputs: Any = (
        torch.randn(1, 3, 32, 32, generator=generator),
        torch.tensor([0.4]),
        [{"caption": torch.randn(4, width, generator=generator)}],
    )
    with torch.no_grad():
        wanted = whole(*inputs)
        near, rounded = small.float()(*inputs), again.float()(*inputs)
    assert (near - wanted).norm() < 0.05 * wanted.norm()
    torch.testing.assert_close(near, rounded, rtol=0.05, atol=0.05)


def test_what_a_quantised_model_cannot_do_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantise", str(model), str(tmp_path / "small"), "--kind", "fp8"]) == 0
    assert "MB of weights" in capsys.readouterr().out
    with pytest.raises(ArchError, match=r"is quantised already .fp8.; start from its original"):
        quantise(tmp_path / "small", tmp_path / "smaller")
    with pytest.raises(ArchError, match=r"is quantised .fp8.; export the model that it was made of"):
        export_public(tmp_path / "small", tmp_path / "x.safetensors")
    with pytest.raises(ArchError, match=r"is quantised .fp8."):
        upscale(tmp_path / "small", tmp_path / "large", patch_size=32)
    with pytest.raises(ArchError, match="quantisation 'int4' is not one of int8, fp8"):
        quantise(model, tmp_path / "x", kind="int4")

"""The gated start is the stated formula, and its gain follows the sigma that the features tell."""

from pathlib import Path

import pytest
import torch
from l2p_arch import ArchError, L2PPipeline, convert
from l2p_arch.detailer import DetailerHead
from l2p_arch.surgery.gated_filters import _slope, _write_finest_level, _write_readout, basis, openings


def test_the_head_computes_gated_filters_of_its_input() -> None:
    torch.manual_seed(0)
    head = DetailerHead(5, (24, 8, 8))
    made = {f"detailer_head.{name}": value.clone() for name, value in head.state_dict().items()}
    filters, readout = 0.1 * torch.randn(3, 3, 6, 3, 3), torch.randn(2, 6)
    _write_finest_level(made, filters, gates=2, sign=-1)
    _write_readout(made, readout, levels=3)
    head.load_state_dict({name.removeprefix("detailer_head."): value for name, value in made.items()})
    x_t, features = torch.randn(1, 3, 16, 16), torch.randn(1, 5, 2, 2)
    filtered = [torch.nn.functional.conv2d(basis(x_t), each, padding=1) for each in filters]
    opening = torch.einsum("kd,bdhw->bkhw", readout[:, :-1], features) + readout[:, -1, None, None]
    opening = opening.repeat_interleave(8, 2).repeat_interleave(8, 3)
    silu = torch.nn.functional.silu
    expected = filtered[0]
    for gate in range(2):
        b = opening[:, gate : gate + 1]
        expected = expected + (silu(filtered[gate + 1] + b) - silu(b - filtered[gate + 1])) / 2
    with torch.no_grad():
        torch.testing.assert_close(head(x_t, features), -expected, rtol=1e-4, atol=1e-4)


def test_a_gate_is_open_near_the_image_and_closed_near_noise() -> None:
    gain = [float(_slope(openings(sigma, (0.25,)))) for sigma in (0.0, 0.25, 0.9)]
    assert gain[0] == pytest.approx(1, abs=0.1)
    assert gain[1] == pytest.approx(0.5)
    assert gain[2] == pytest.approx(0, abs=0.01)


def test_before_any_training_the_start_predicts_the_velocity_near_the_image(
    untrained_source: Path, tmp_path: Path
) -> None:
    coarse = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(-2, 2) / 2
    report = convert(
        untrained_source,
        tmp_path / "out",
        head_channels=(16, 8, 8, 8),
        initialisation="fitted+gated",
        calibration_images=images,
    )
    assert 0.5 < report.measures["sigma_told_by_features"] <= 1
    assert 0 < report.measures["velocity_left_by_filters"] < 0.6
    pipeline = L2PPipeline.from_pretrained(tmp_path / "out")
    model, conditioning = pipeline.transformer, pipeline.encode(["a red circle"]) * len(images)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for sigma in (0.05, 0.1, 0.2):  # what decides; random blocks hardly tell the rest of the axis apart
            x_t = (1 - sigma) * images + sigma * noise
            velocity = model(x_t, torch.full((len(images),), sigma), conditioning)
            error = (velocity - (noise - images)).square().mean() / (noise - images).square().mean()
            assert error < 0.75, sigma


def test_a_narrow_head_cannot_be_gated(untrained_source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchError, match="at least 12 channels"):
        convert(
            untrained_source,
            tmp_path / "out",
            head_channels=(8, 8),
            initialisation="gated",
            calibration_images=torch.zeros(1, 3, 32, 32),
        )

"""The command that puts a trained pixel miniature in the place of the one that ships."""

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import L2PTransformer
from l2p_mini.paths import PIXEL_MODEL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[2] / "scripts" / "ship_pixel_model.py"
WEIGHTS = Path("transformer", "diffusion_pytorch_model.safetensors")


def ship(model: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("sys.argv", ["ship_pixel_model.py", str(model), "-o", str(output)])
    return runpy.run_path(str(SCRIPT))["main"]()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What a training leaves: the aligner's maps in float32, and notes of its own."""
    out = tmp_path / "trained"
    shutil.copytree(PIXEL_MODEL, out)
    tensors = load_file(out / WEIGHTS)
    wide = {name: t.float() if name.startswith("aligner.") else t for name, t in tensors.items()}
    with safe_open(out / WEIGHTS, "pt") as file:
        save_file(wide, out / WEIGHTS, metadata=file.metadata())
    (out / "training.json").write_text("{}")
    (out / "README.md").write_text("the run's own card")
    return out


def test_maps_are_stored_in_half_and_compute_in_float32(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shipped"
    out.mkdir()
    (out / "README.md").write_text("the card that was written by hand")
    assert ship(trained, out, monkeypatch) == 0
    assert load_file(out / WEIGHTS)["aligner.decoder"].dtype == torch.float16
    assert (out / "README.md").read_text() == "the card that was written by hand"
    assert not (out / "training.json").exists()
    shipped, before = (L2PTransformer.from_pretrained(place / "transformer") for place in (out, trained))
    for name, values in before.state_dict().items():
        assert shipped.state_dict()[name].dtype == values.dtype, name
        torch.testing.assert_close(shipped.state_dict()[name], values, rtol=1e-3, atol=1e-6)


def test_what_float16_cannot_hold_and_what_is_no_model_are_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        ship(tmp_path / "nothing", tmp_path / "out", monkeypatch)
    assert caught.value.code == 2 and not (tmp_path / "out").exists()
    tensors = load_file(trained / WEIGHTS)
    tensors["aligner.decoder"][0] = 1e6
    save_file(tensors, trained / WEIGHTS)
    with pytest.raises(SystemExit, match=r"aligner\.decoder has values that float16 does not hold"):
        ship(trained, tmp_path / "out", monkeypatch)

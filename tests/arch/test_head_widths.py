"""The head follows the patch, and one that goes beyond it is refused."""

from pathlib import Path

import pytest
import torch
from l2p_arch import ArchError, L2PPipeline, convert, export_public, upscale
from l2p_arch.files.public_layout import PUBLIC_LAYOUTS
from l2p_arch.surgery.head_widths import check_head_channels, default_head_channels


def test_the_defaults_are_table_3_and_the_public_4k_head() -> None:
    assert default_head_channels(16) == (64, 128, 256, 512)
    assert default_head_channels(64) == (16, 32, 64, 128, 256, 512)
    assert default_head_channels(1) == ()
    for patch_size in (1, 2, 3, 8, 15, 16, 20, 32, 64, 100, 128, 160):
        check_head_channels(patch_size, default_head_channels(patch_size))


@pytest.mark.parametrize(("name", "patch_size"), [("1k", 16), ("4k", 64), ("8k", 128), ("10k", 160)])
def test_every_public_head_suits_its_patch(name: str, patch_size: int) -> None:
    check_head_channels(patch_size, [3] * len(PUBLIC_LAYOUTS[name].levels))


def test_a_head_beyond_the_patch_is_refused_with_one_that_is_not(
    untrained_source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArchError, match=r"beyond the patch of 8; .* such as head_channels \(64, 128, 256\)"):
        convert(untrained_source, tmp_path / "out", patch_size=8, head_channels=(8, 8, 8, 8))
    assert not list(tmp_path.iterdir())


def test_an_image_of_one_patch_can_be_drawn_with_any_default_head(
    untrained_source: Path, tmp_path: Path
) -> None:
    convert(untrained_source, tmp_path / "8", patch_size=8)
    upscale(tmp_path / "8", tmp_path / "32", patch_size=32)
    for patch_size in (8, 32):
        pipeline = L2PPipeline.from_pretrained(tmp_path / str(patch_size))
        pipeline.set_progress_bar_config(disable=True)
        size = {"height": patch_size, "width": 2 * patch_size}
        images = pipeline("a", **size, num_inference_steps=1, seeds=[0], output_type="pt").images
        assert images.shape == (1, 3, patch_size, 2 * patch_size)
        assert torch.isfinite(images).all()


@pytest.mark.parametrize(("patch_size", "layout"), [(128, "8k"), (160, "10k")])
def test_the_default_heads_of_large_patches_are_the_public_ones(
    untrained_source: Path, tmp_path: Path, patch_size: int, layout: str
) -> None:
    convert(untrained_source, tmp_path / "out", patch_size=patch_size)
    assert export_public(tmp_path / "out", tmp_path / "out.safetensors") == layout
    convert(untrained_source, tmp_path / "small", patch_size=16 if patch_size == 128 else 32)
    upscale(tmp_path / "small", tmp_path / "large", patch_size=patch_size)
    assert export_public(tmp_path / "large", tmp_path / "large.safetensors") == layout

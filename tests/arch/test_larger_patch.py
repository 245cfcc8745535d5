"""A larger patch starts from a smaller one: the same picture gives the same tokens, and the coarse head is
kept."""

from pathlib import Path

import pytest
import torch
from l2p_arch import ArchError, L2PPipeline, L2PTransformer, convert, pixels_to_patches, upscale


def test_the_larger_patch_sees_the_tokens_of_the_smaller_picture(
    untrained_source: Path, tmp_path: Path
) -> None:
    convert(untrained_source, tmp_path / "small", patch_size=4, head_channels=(8, 16))
    report = upscale(tmp_path / "small", tmp_path / "large", patch_size=16, head_channels=(4, 6, 8, 16))
    small = L2PTransformer.from_pretrained(tmp_path / "small/transformer")
    large = L2PPipeline.from_pretrained(tmp_path / "large").transformer
    picture = torch.randn(1, 3, 8, 12)
    enlarged = picture.repeat_interleave(4, 2).repeat_interleave(4, 3)
    conditioning = [{"caption": torch.randn(5, 128)}]
    with torch.no_grad():
        features = [
            model.source_family.run(
                model.trunk, pixels_to_patches(pixels, patch), torch.tensor([0.3]), conditioning
            )
            for model, pixels, patch in ((small, picture, 4), (large, enlarged, 16))
        ]
    torch.testing.assert_close(features[1], features[0], rtol=1e-4, atol=1e-4)
    old, new = small.detailer_head.state_dict(), large.detailer_head.state_dict()
    for ours, theirs in (
        ("enc4.0", "enc2.0"),
        ("up3.1", "up1.1"),
        ("dec4.0", "dec2.0"),
        ("bottleneck.0", "bottleneck.0"),
    ):
        assert torch.equal(new[f"{ours}.weight"], old[f"{theirs}.weight"])
    kept = {record.name for record in report.inherited}
    assert kept | {record.name for record in report.new} == set(large.state_dict())
    assert "detailer_head.enc1.0.weight" not in kept
    assert {record.name for record in report.dropped} >= {
        "detailer_head.enc1.0.weight",
        "detailer_head.out_conv.weight",
    }


def test_the_new_levels_start_by_passing_detail(untrained_source: Path, tmp_path: Path) -> None:
    """Then the first velocity is x_t minus its 3 x 3 mean, as with `convert`; coarse levels are inherited."""
    convert(untrained_source, tmp_path / "small", patch_size=4, head_channels=(8, 16))
    report = upscale(
        tmp_path / "small",
        tmp_path / "large",
        patch_size=8,
        head_channels=(8, 8, 16),
    )
    assert report.initialisation == "upscale+kaiming+detail"
    assert "detailer_head.out_conv.weight" in {record.name for record in report.new}
    large = L2PTransformer.from_pretrained(tmp_path / "large/transformer")
    pixels = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        velocity = large(pixels, torch.tensor([0.5]), [{"caption": torch.randn(5, 128)}])
    mean = torch.nn.functional.avg_pool2d(pixels, 3, stride=1, padding=1)
    torch.testing.assert_close(velocity, pixels - mean, rtol=1e-4, atol=1e-5)
    public = upscale(
        tmp_path / "small",
        tmp_path / "public",
        patch_size=8,
        head_channels=(8, 8, 16),
        initialisation="default",
    )
    assert public.initialisation == "upscale"
    same_head = upscale(tmp_path / "small", tmp_path / "same", patch_size=8, head_channels=(8, 16))
    assert same_head.initialisation == "upscale"
    assert [record.name for record in same_head.new] == ["trunk.all_x_embedder.1-1.weight"]
    with pytest.raises(ArchError, match="'gated' is none of upscale's: auto, default, kaiming"):
        upscale(tmp_path / "small", tmp_path / "x", patch_size=8, initialisation="gated")


def test_the_bottleneck_keeps_its_width_unless_another_is_asked_for(
    untrained_source: Path, tmp_path: Path
) -> None:
    """The public 10K head ends in fewer channels than its bottleneck has, which are the 1K head's."""
    convert(untrained_source, tmp_path / "small", patch_size=4, head_channels=(8, 16))
    for asked, width, in_config in ((None, 16, 16), (12, 12, 12), (8, 8, None)):
        out = tmp_path / f"large-{width}"
        upscale(tmp_path / "small", out, patch_size=8, head_channels=(8, 8, 8), head_bottleneck=asked)
        large = L2PTransformer.from_pretrained(out / "transformer")
        assert large.config.head_bottleneck == in_config
        assert large.detailer_head.bottleneck[0].out_channels == width


def test_a_patch_that_is_no_multiple_is_refused(untrained_source: Path, tmp_path: Path) -> None:
    convert(untrained_source, tmp_path / "small", patch_size=4, head_channels=(8, 8))
    for patch_size in (4, 6):
        with pytest.raises(ArchError, match="no larger multiple"):
            upscale(tmp_path / "small", tmp_path / "large", patch_size=patch_size)
    with pytest.raises(ArchError, match="no L2P model directory"):
        upscale(untrained_source, tmp_path / "large")
    assert not (tmp_path / "large").exists()

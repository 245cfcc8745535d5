"""The Detailer Head against Table 3 and a float64 reference written as plain sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_arch import ArchError, DetailerHead
from numpy.typing import NDArray

PUBLIC_1K_SHAPES = {
    "enc1.0": (64, 3, 3, 3),
    "enc2.0": (128, 64, 3, 3),
    "enc3.0": (256, 128, 3, 3),
    "enc4.0": (512, 256, 3, 3),
    "bottleneck.0": (512, 4352, 1, 1),
    "up4.1": (512, 512, 3, 3),
    "up3.1": (256, 256, 3, 3),
    "up2.1": (128, 128, 3, 3),
    "up1.1": (64, 64, 3, 3),
    "dec4.0": (256, 1024, 3, 3),
    "dec3.0": (128, 512, 3, 3),
    "dec2.0": (64, 256, 3, 3),
    "dec1.0": (64, 128, 3, 3),
    "out_conv": (3, 64, 1, 1),
}


def test_patch_16_has_the_tensors_of_table_3_and_of_the_public_file() -> None:
    with torch.device("meta"):
        head = DetailerHead(3840)
    state = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    expected = {f"{name}.weight": shape for name, shape in PUBLIC_1K_SHAPES.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in PUBLIC_1K_SHAPES.items()}
    assert state == expected
    assert sum(parameter.numel() for parameter in head.parameters()) == 10_085_123


def test_the_widths_of_the_public_4k_8k_and_10k_heads_follow_from_three_numbers() -> None:
    with torch.device("meta"):
        four = DetailerHead(3840, (16, 32, 64, 128, 256, 512))
        eight = DetailerHead(3840, (3, 16, 32, 64, 128, 256, 512), decoder_floor=16)
        ten = DetailerHead(3840, (3, 16, 32, 64, 128, 256), decoder_floor=16, bottleneck_channels=512)
    assert [four.get_submodule(f"dec{n}.0").weight.shape[:2] for n in (3, 2, 1)] == [
        (32, 128),
        (16, 64),
        (16, 32),
    ]
    assert eight.get_submodule("enc1.0").weight.shape[:2] == (3, 3)
    assert eight.get_submodule("up1.1").weight.shape[:2] == (16, 16)
    assert eight.get_submodule("dec1.0").weight.shape[:2] == (16, 19)
    assert eight.get_submodule("dec2.0").weight.shape[:2] == (16, 32)
    assert ten.get_submodule("up6.1").weight.shape[:2] == (256, 512)
    assert ten.bottleneck[0].weight.shape[:2] == (512, 256 + 3840)


def conv(x: NDArray[np.float64], layer: torch.nn.Module) -> NDArray[np.float64]:
    """A same-size convolution as a sum over the kernel's positions; x is (C, H, W)."""
    weight, bias = (parameter.detach().double().numpy() for parameter in (layer.weight, layer.bias))
    reach = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    out = np.zeros((weight.shape[0], *x.shape[1:])) + bias[:, None, None]
    for dy in range(weight.shape[2]):
        for dx in range(weight.shape[3]):
            out += np.einsum(
                "oi,ihw->ohw", weight[:, :, dy, dx], padded[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
            )
    return out


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / (1 + np.exp(-x))


def reference(
    head: DetailerHead, pixels: NDArray[np.float64], features: NDArray[np.float64]
) -> NDArray[np.float64]:
    x, skips = pixels, []
    for level in range(1, head.levels + 1):
        x = silu(conv(x, head.get_submodule(f"enc{level}.0")))
        skips.append(x)
        x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2).max(axis=(2, 4))
    x = silu(conv(np.concatenate((x, features)), head.bottleneck[0]))
    for level in range(head.levels, 0, -1):
        x = conv(x.repeat(2, axis=1).repeat(2, axis=2), head.get_submodule(f"up{level}.1"))
        x = silu(conv(np.concatenate((x, skips.pop())), head.get_submodule(f"dec{level}.0")))
    return conv(x, head.out_conv)


@pytest.mark.parametrize("channels", [(4, 6), (4, 6, 8, 10)])
def test_the_head_equals_a_float64_reference(channels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = DetailerHead(12, channels)
    stride = 2 ** len(channels)
    pixels, features = (torch.randn(1, 3, 2 * stride, 3 * stride), torch.randn(1, 12, 2, 3))
    expected = reference(head, pixels[0].double().numpy(), features[0].double().numpy())
    np.testing.assert_allclose(
        head.double()(pixels.double(), features.double())[0].detach().numpy(), expected, atol=1e-12
    )
    np.testing.assert_allclose(head.float()(pixels, features)[0].detach().numpy(), expected, atol=1e-5)


def test_features_on_another_grid_are_nearest_resampled() -> None:
    torch.manual_seed(0)
    head = DetailerHead(5, (4, 4))
    pixels, features = torch.randn(1, 3, 16, 16), torch.randn(1, 5, 2, 2)
    enlarged = features.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(head(pixels, features), head(pixels, enlarged))


def test_sides_that_do_not_halve_evenly_still_give_every_pixel() -> None:
    assert DetailerHead(5, (4, 4, 4))(torch.randn(1, 3, 20, 12), torch.randn(1, 5, 5, 3)).shape == (
        1,
        3,
        20,
        12,
    )


def test_an_empty_list_of_widths_is_refused() -> None:
    with pytest.raises(ArchError, match="head_channels"):
        DetailerHead(5, ())


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    tile=st.sampled_from([1, 8, 12, 20, 64]),
    channels=st.sampled_from([(4, 6), (3, 5, 4)]),
)
def test_tiles_give_the_same_output(rows: int, columns: int, tile: int, channels: tuple[int, ...]) -> None:
    torch.manual_seed(rows * 13 + columns)
    head = DetailerHead(5, channels).double()
    stride = 2 ** len(channels)
    pixels = torch.randn(1, 3, rows * stride, columns * stride, dtype=torch.float64)
    features = torch.randn(1, 5, rows, columns, dtype=torch.float64)
    whole = head(pixels, features)
    head.enable_tiling(tile)
    torch.testing.assert_close(head(pixels, features), whole, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(8, 130),
    width=st.integers(8, 130),
    tile=st.sampled_from([1, 8, 20, 40]),
    channels=st.sampled_from([(4, 6), (3, 5, 4)]),
)
def test_tiles_give_the_same_output_on_sides_that_do_not_halve_evenly(
    height: int, width: int, tile: int, channels: tuple[int, ...]
) -> None:
    torch.manual_seed(height * 131 + width)
    head = DetailerHead(5, channels).double()
    pixels = torch.randn(1, 3, height, width, dtype=torch.float64)
    features = torch.randn(1, 5, height // 5, width // 5, dtype=torch.float64)
    whole = head(pixels, features)
    head.enable_tiling(tile)
    torch.testing.assert_close(head(pixels, features), whole, rtol=1e-12, atol=1e-12)


def test_an_odd_image_is_run_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    head, seen = DetailerHead(5, (4, 4, 4)), list[torch.Size]()
    head.enc1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    head.enable_tiling(40)
    head(torch.randn(1, 3, 20 * 17, 20 * 9), torch.randn(1, 5, 17, 9))
    assert len(seen) > 20
    assert max(max(shape[-2:]) for shape in seen) <= 40 + 2 * 5 * 8 + 7


def test_a_narrower_margin_would_not_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = DetailerHead(5, (4, 4)).double()
    pixels, features = torch.randn(1, 3, 64, 64).double(), torch.randn(1, 5, 16, 16).double()
    whole = head(pixels, features)
    head.enable_tiling(16)
    monkeypatch.setattr("l2p_arch.detailer._MARGIN", 2)
    assert (head(pixels, features) - whole).abs().max() > 1e-9


def test_tiles_with_checkpointing_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    head = DetailerHead(5, (4, 4)).double()
    pixels, features = torch.randn(1, 3, 48, 32).double(), torch.randn(1, 5, 12, 8).double()
    gradients = []
    for tile in (None, 16):
        head.enable_tiling(tile)
        head.gradient_checkpointing = tile is not None
        leaf = features.clone().requires_grad_()
        gradients.append(torch.autograd.grad(head(pixels, leaf).square().sum(), [leaf, *head.parameters()]))
    for whole, tiled in zip(*gradients, strict=True):
        torch.testing.assert_close(tiled, whole)


def test_tiling_resamples_features_before_it_cuts() -> None:
    torch.manual_seed(0)
    head = DetailerHead(5, (4, 4)).double()
    pixels, features = torch.randn(1, 3, 60, 60).double(), torch.randn(1, 5, 6, 6).double()
    whole = head(pixels, features)
    head.enable_tiling(16)
    torch.testing.assert_close(head(pixels, features), whole)


@pytest.mark.parametrize(
    ("pixels", "features", "complaint"),
    [
        ((1, 5, 4, 4), (1, 3, 16, 16), r"pixels have the shape \(1, 5, 4, 4\); wanted \(B, 3, H, W\)"),
        ((1, 3, 3, 16), (1, 5, 4, 4), "with sides of at least 4 px"),
        ((1, 3, 16, 16), (1, 6, 4, 4), r"features have the shape \(1, 6, 4, 4\); wanted \(1, 5, h, w\)"),
        ((1, 3, 16, 16), (1, 16, 5), "a transformer's tokens as a grid"),
        ((2, 3, 16, 16), (1, 5, 4, 4), r"wanted \(2, 5, h, w\)"),
    ],
)
def test_wrong_inputs_are_named(pixels: tuple[int, ...], features: tuple[int, ...], complaint: str) -> None:
    head = DetailerHead(5, (4, 4))
    with pytest.raises(ArchError, match=complaint):
        head(torch.zeros(pixels), torch.zeros(features))
    with pytest.raises(ArchError, match="feature_channels is 0; wanted a whole number of at least 1"):
        DetailerHead(0)

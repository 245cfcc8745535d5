"""The Detailer Head: a small U-Net that turns token features and noisy pixels into the velocity (sec. 3.3,
Table 3)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2p_arch.errors import ArchError

_MARGIN = 3  # cells around a tile, see `DetailerHead._tile`


class DetailerHead(nn.Module):
    """Down to the token grid, fuse with the features there, and up again; every convolution has a bias, no
    norms.

    Table 3 for patch 16: down 3 -> 64 -> 128 -> 256 -> 512, bottleneck (512 + 3840) -> 512,
    up 512 -> 256 -> 128 -> 64 -> 64, output 64 -> 3. Tensor names (`enc1.0`, `up1.1`, ...) follow the public
    files.

    Args:
        feature_channels: width D of the transformer's tokens.
        channels: encoder widths, one per halving of the image, finest first. `2 ** len(channels)` usually
            equals the patch size; where it does not, the features are resampled to the bottleneck's grid.
        bottleneck_channels: width after the fusion; the last encoder width unless given.
        decoder_floor: no decoder level is narrower than this (16 in the public 8K and 10K heads, whose first
            encoder level keeps the 3 pixel channels).
        pixel_channels: channels of the image.
    """

    output_layer = "out_conv"

    def __init__(
        self,
        feature_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512),
        *,
        bottleneck_channels: int | None = None,
        decoder_floor: int = 0,
        pixel_channels: int = 3,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ArchError(
                f"head_channels {tuple(channels)} must be positive widths, one per level, finest first"
            )
        self.levels = len(channels)
        self.tile: int | None = None
        self.gradient_checkpointing = False  # set by diffusers' enable_gradient_checkpointing
        encoder = (pixel_channels, *channels)
        decoder = [max(width, decoder_floor) for width in channels]  # width at each level, finest first
        width = bottleneck_channels or channels[-1]
        for level, (wide_in, wide_out) in enumerate(pairwise(encoder), start=1):
            self.add_module(f"enc{level}", _conv_silu(wide_in, wide_out, kernel_size=3))
        self.bottleneck = _conv_silu(channels[-1] + feature_channels, width, kernel_size=1)
        for level in range(self.levels, 0, -1):
            up_width = decoder[level - 1]
            out_width = decoder[max(level - 2, 0)]
            # Index 0 is the parameterless resize of `forward`: the public files call this convolution
            # `up{n}.1`.
            self.add_module(
                f"up{level}", nn.Sequential(nn.Identity(), nn.Conv2d(width, up_width, 3, padding=1))
            )
            self.add_module(
                f"dec{level}", _conv_silu(up_width + channels[level - 1], out_width, kernel_size=3)
            )
            width = out_width
        self.out_conv = nn.Conv2d(width, pixel_channels, 1)

    def enable_tiling(self, tile: int | None = 1024) -> None:
        """Run in square tiles of about `tile` px, or whole again with None; the result is the same.

        Peak memory then depends on the tile and no longer on the image. With gradient checkpointing each tile
        is computed again in the backward pass, so that training is bounded too. Images whose sides are no
        multiples of 2 ** levels run whole: their levels' grids do not meet at tiles' borders.
        """
        if tile is not None and tile < 1:
            raise ArchError(f"a tile of {tile} px is too small; 512 to 2048 are usual")
        self.tile = tile

    def forward(self, pixels: Tensor, features: Tensor) -> Tensor:
        """Map pixels x_t (B, 3, H, W) and features (B, D, h, w) to the raw output (B, 3, H, W)."""
        height, width = pixels.shape[-2:]
        stride = 2**self.levels
        divisible = height % stride == 0 and width % stride == 0
        grid = (height // stride, width // stride) if divisible else None
        if grid is not None and features.shape[-2:] != grid:
            features = F.interpolate(features, size=grid, mode="nearest")
        if grid is None or self.tile is None or max(height, width) <= self.tile:
            return self._whole(pixels, features)
        step = max(self.tile // stride, 1)  # all of the following in cells of the bottleneck's grid
        rows = [
            torch.cat(
                [self._tile(pixels, features, top, left, step) for left in range(0, grid[1], step)], dim=3
            )
            for top in range(0, grid[0], step)
        ]
        return torch.cat(rows, dim=2)

    def _tile(self, pixels: Tensor, features: Tensor, top: int, left: int, step: int) -> Tensor:
        """The output of one tile, computed with a margin that its outermost pixels can see (cells, clipped at
        the image).

        One output pixel sees less than 3 * 2**levels pixels to each side: one 3x3 convolution per level on
        the way down and two on the way up.
        """
        stride, (rows, columns) = 2**self.levels, features.shape[-2:]
        bottom, right = min(top + step, rows), min(left + step, columns)
        y0, y1 = max(top - _MARGIN, 0), min(bottom + _MARGIN, rows)
        x0, x1 = max(left - _MARGIN, 0), min(right + _MARGIN, columns)
        inputs = (
            pixels[:, :, y0 * stride : y1 * stride, x0 * stride : x1 * stride],
            features[:, :, y0:y1, x0:x1],
        )
        if self.gradient_checkpointing and torch.is_grad_enabled():
            out = checkpoint(self._whole, *inputs, use_reentrant=False)
        else:
            out = self._whole(*inputs)
        rows_kept = slice((top - y0) * stride, (bottom - y0) * stride)
        return out[:, :, rows_kept, (left - x0) * stride : (right - x0) * stride]

    def _whole(self, pixels: Tensor, features: Tensor) -> Tensor:
        x = pixels.contiguous(memory_format=torch.channels_last)
        skips = []
        for level in range(1, self.levels + 1):
            x = self.get_submodule(f"enc{level}")(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        if features.shape[-2:] != x.shape[-2:]:
            features = F.interpolate(features, size=x.shape[-2:], mode="nearest")
        x = self.bottleneck(torch.cat((x, features), dim=1))
        for level in range(self.levels, 0, -1):
            skip = skips.pop()
            x = self.get_submodule(f"up{level}")(F.interpolate(x, size=skip.shape[-2:], mode="nearest"))
            x = self.get_submodule(f"dec{level}")(torch.cat((x, skip), dim=1))
        return self.out_conv(x)


def _conv_silu(wide_in: int, wide_out: int, *, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(wide_in, wide_out, kernel_size, padding=kernel_size // 2), nn.SiLU())

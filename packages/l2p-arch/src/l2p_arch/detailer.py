"""The Detailer Head: a small U-Net that turns token features and noisy pixels into the velocity (sec. 3.3,
Table 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2p_arch.arguments import check_counts, check_widths
from l2p_arch.errors import ArchError

_MARGIN = 3  # cells around a tile, see `DetailerHead._tile`
_UNEVEN_MARGIN = 5  # the same where the image's sides do not halve evenly at every level


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
        input_channels: channels that it reads at full size, where they are not the image's alone.
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
        input_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(feature_channels=feature_channels, pixel_channels=pixel_channels)
        check_counts(least=0, decoder_floor=decoder_floor)
        for name, given in (("bottleneck_channels", bottleneck_channels), ("input_channels", input_channels)):
            if given is not None:
                check_counts(**{name: given})
        check_widths("head_channels", channels)
        if not channels:
            raise ArchError("head_channels is empty, and a Detailer Head has a level for each; give some")
        self.levels = len(channels)
        read = input_channels or pixel_channels
        self._widths = read, feature_channels  # asked of the layers, an adapter would hide them
        self.tile: int | None = None
        self.gradient_checkpointing = False  # set by diffusers' enable_gradient_checkpointing
        encoder = (read, *channels)
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

        Beside the image, the features and the output, memory then depends on the tile alone. With gradient
        checkpointing each tile is computed again in the backward pass, so that training is bounded too.
        """
        if tile is not None and tile < 1:
            raise ArchError(f"a tile of {tile} px is too small; 512 to 2048 are usual")
        self.tile = tile

    def forward(
        self, pixels: Tensor, features: Tensor, with_hidden: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map pixels x_t (B, 3, H, W) and features (B, D, h, w) to the raw output (B, 3, H, W), `with_hidden`
        together with what the last convolution read, (B, C, H, W)."""
        if not with_hidden:
            return self._in_parts(pixels, features, self._whole)
        hidden = self._in_parts(pixels, features, self._hidden)
        return self.out_conv(hidden), hidden

    def _in_parts(self, pixels: Tensor, features: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """`run` the whole image at once, or in tiles."""
        self._check(pixels, features)
        height, width = pixels.shape[-2:]
        stride = 2**self.levels
        grid = (height // stride, width // stride)
        if features.shape[-2:] != grid:
            features = F.interpolate(features, size=grid, mode="nearest")
        if self.tile is None or max(height, width) <= self.tile:
            return run(pixels, features)
        step = max(self.tile // stride, 1)  # all of the following in cells of the bottleneck's grid
        rows = [
            torch.cat(
                [self._tile(pixels, features, top, left, step, run) for left in range(0, grid[1], step)],
                dim=3,
            )
            for top in range(0, grid[0], step)
        ]
        return torch.cat(rows, dim=2)

    def _check(self, pixels: Tensor, features: Tensor) -> None:
        (colours, width), least = self._widths, 2**self.levels
        if pixels.ndim != 4 or pixels.shape[1] != colours or min(pixels.shape[2:]) < least:
            raise ArchError(
                f"pixels have the shape {tuple(pixels.shape)}; wanted (B, {colours}, H, W) with sides of at "
                f"least {least} px"
            )
        if features.ndim != 4 or features.shape[:2] != (pixels.shape[0], width):
            raise ArchError(
                f"features have the shape {tuple(features.shape)}; "
                f"wanted ({pixels.shape[0]}, {width}, h, w), a transformer's tokens as a grid"
            )

    def _tile(
        self,
        pixels: Tensor,
        features: Tensor,
        top: int,
        left: int,
        step: int,
        run: Callable[..., Tensor],
    ) -> Tensor:
        """Return the output of one tile, computed with a margin that its outermost pixels can see (cells,
        clipped at the image).

        One output pixel sees less than 3 * 2**levels pixels to each side: one 3x3 convolution per level on
        the way down and two on the way up. Where a level has an odd side, the way up also reads one pixel of
        the coarser level further, in all less than 2 * 2**levels.
        """
        size, stride = pixels.shape[-2:], 2**self.levels
        margin = _UNEVEN_MARGIN if any(side % stride for side in size) else _MARGIN
        rows = _Span.of(top, step, margin, size[0], stride)
        columns = _Span.of(left, step, margin, size[1], stride)
        inputs = (
            pixels[:, :, rows.pixels, columns.pixels],
            features[:, :, rows.cells, columns.cells],
            (rows, columns),
        )
        if self.gradient_checkpointing and torch.is_grad_enabled():
            out = checkpoint(run, *inputs, use_reentrant=False)
        else:
            out = run(*inputs)
        return out[:, :, rows.kept, columns.kept]

    def _whole(self, pixels: Tensor, features: Tensor, part: "tuple[_Span, _Span] | None" = None) -> Tensor:
        """Return the output of an image, or of a part of one with all that its margin lacks."""
        return self.out_conv(self._hidden(pixels, features, part))

    def _hidden(self, pixels: Tensor, features: Tensor, part: "tuple[_Span, _Span] | None" = None) -> Tensor:
        """Return what the last convolution reads."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        skips = []
        for level in range(1, self.levels + 1):
            x = self.get_submodule(f"enc{level}")(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottleneck(torch.cat((x, features), dim=1))
        for level in range(self.levels, 0, -1):
            skip = skips.pop()
            x = _enlarged(x, skip.shape[-2:], level, part)
            x = self.get_submodule(f"up{level}")(x)
            x = self.get_submodule(f"dec{level}")(torch.cat((x, skip), dim=1))
        return x


@dataclass(frozen=True, kw_only=True)
class _Span:
    """What one tile reads and keeps along one side of the image."""

    cells: slice
    """Read, of the bottleneck's grid."""
    pixels: slice
    """Read, of the image."""
    kept: slice
    """Of the pixels read."""
    side: int
    """The whole image's, px."""

    @classmethod
    def of(cls, first: int, step: int, margin: int, side: int, stride: int) -> "_Span":
        """Of the tile of `step` cells from `first` on; the last one takes what is left of the image."""
        cells = side // stride
        start, end, last = max(first - margin, 0), min(first + step + margin, cells), first + step >= cells
        stop = side if end == cells else end * stride
        kept_stop = side if last else (first + step) * stride
        return cls(
            cells=slice(start, end),
            pixels=slice(start * stride, stop),
            kept=slice((first - start) * stride, kept_stop - start * stride),
            side=side,
        )

    def read_from(self, level: int, count: int, coarser: Tensor, dim: int) -> Tensor | None:
        """Return which pixels of `coarser`, its part of the next coarser level, the `count` ones of this
        part read. None where they are simply twice as many: nearest resizing is out of step at odd sides
        only.

        Pixels that the part lacks are read from its rim; a margin keeps that away from what is kept.
        """
        fine, coarse = self.side >> (level - 1), self.side >> level
        if fine == 2 * coarse:
            return None
        # Asked of the very function, on the very device, that would resize the whole image.
        pixels = torch.arange(coarse, dtype=torch.float32, device=coarser.device)
        whole = F.interpolate(pixels[None, None], size=fine)[0, 0].long()
        start = self.pixels.start >> (level - 1)
        return (whole[start : start + count] - start // 2).clamp(0, coarser.shape[dim] - 1)


def _enlarged(x: Tensor, size: Sequence[int], level: int, part: tuple[_Span, _Span] | None) -> Tensor:
    """Return nearest neighbours at the size of a finer level, as if the whole image were resized."""
    for dim, span in zip((2, 3), part or (), strict=False):
        index = span.read_from(level, size[dim - 2], x, dim)
        x = x if index is None else x.index_select(dim, index)
    return F.interpolate(x, size=tuple(size), mode="nearest") if x.shape[-2:] != tuple(size) else x


def _conv_silu(wide_in: int, wide_out: int, *, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(wide_in, wide_out, kernel_size, padding=kernel_size // 2), nn.SiLU())

"""The Detailer Head whole and in tiles: peak memory and work against the image's size, at full size.

    uv run python benchmarks/arch_tiling.py [--sides 1024 2048 4096 8192] [--tile 1024]

Counted on meta tensors in bfloat16 for the head of Table 3 (patch 16), the public 4K head (patch 64) and the
public 10K head (patch 160, whose images do not always halve evenly down to its grid); sides are rounded down
to the patch. Printed are the most bytes alive at once in inference, and what training saves for the backward
pass, with each tile computed again when it is checkpointed. With --device cuda the peak of inference is
measured as well. One JSON line per row.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from l2p_arch import DetailerHead
from l2p_eval.efficiency import count

HEADS: dict[int, dict[str, Any]] = {
    16: {"channels": (64, 128, 256, 512)},
    64: {"channels": (16, 32, 64, 128, 256, 512)},
    160: {"channels": (3, 16, 32, 64, 128, 256), "bottleneck_channels": 512, "decoder_floor": 16},
}


def inputs(side: int, patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty pixels (1, 3, side, side) and features (1, 3840, side / patch, side / patch), bfloat16."""
    grid = side // patch_size
    pixels = torch.empty(1, 3, side, side, dtype=torch.bfloat16)
    return pixels, torch.empty(1, 3840, grid, grid, dtype=torch.bfloat16)


def saved_for_backward(head: DetailerHead, pixels: torch.Tensor, features: torch.Tensor) -> int:
    """Bytes that autograd keeps from the forward to the backward pass, weights apart."""
    kept: dict[int, int] = {}
    weights = {value.untyped_storage()._cdata for value in head.parameters()}
    alive: list[torch.Tensor] = []  # a freed storage's address could be used twice

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        head(pixels, features.requires_grad_())
    return sum(kept.values())


def measured(patch_size: int, side: int, tile: int | None) -> float:
    """Peak GB of inference on the GPU, weights and inputs apart."""
    with torch.device("cuda"):
        head = DetailerHead(3840, **HEADS[patch_size]).bfloat16()
        head.enable_tiling(tile)
        given = inputs(side, patch_size)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        head(*given)
    return round((torch.cuda.max_memory_allocated() - before) / 1e9, 3)


def row(patch_size: int, side: int, tile: int | None, device: str) -> dict[str, Any]:
    """Counts of one head at one size, whole (tile None) or in tiles."""
    with torch.device("meta"):
        head = DetailerHead(3840, **HEADS[patch_size]).bfloat16()
        head.enable_tiling(tile)
        counted = count(lambda: head(*inputs(side, patch_size)), head)
        head.gradient_checkpointing = tile is not None
        saved = saved_for_backward(head, *inputs(side, patch_size))
    result = {
        "patch": patch_size,
        "side": side,
        "tile": tile,
        "tflop": round(counted.flops / 1e12, 2),
        "gb_peak": round(counted.peak_activation_bytes / 1e9, 3),
        "gb_saved_for_backward": round(saved / 1e9, 3),
    }
    return result | ({"gb_peak_measured": measured(patch_size, side, tile)} if device == "cuda" else {})


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--device", choices=("meta", "cuda"), default="meta")
    options = parser.parse_args()
    for patch_size in HEADS:
        for side in options.sides:
            for tile in (None, options.tile):
                usable = side // patch_size * patch_size
                print(json.dumps(row(patch_size, usable, tile, options.device)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

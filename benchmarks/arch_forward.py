"""Our forward against diffusers' own Z-Image transformer: batch 8, captions of unequal length, one run.

    uv run python benchmarks/arch_forward.py [--dim 384 --layers 8 --side 256 --repeats 5] [--device cpu]

Both get the same blocks, the same number of image tokens and the same captions; the variants take turns, and
the least time of each counts. Prints one JSON object with ratios to diffusers' forward on latents: `ours` is
the whole model (pixels in, velocity out), `trunk` is it without its head, `one at a time` calls it once per
sample as the public ports must, `middle frozen` and `all trainable` are forward and backward.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from l2p_arch import L2PTransformer, pixels_to_patches


def variants(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    torch.manual_seed(0)
    heads = options.dim // 64
    config = {
        "dim": options.dim,
        "n_layers": options.layers,
        "n_refiner_layers": 2,
        "n_heads": heads,
        "n_kv_heads": heads,
        "cap_feat_dim": 256,
        "axes_dims": [16, 24, 24],
    }
    count, device = 8, options.device
    source = ZImageTransformer2DModel(**config).to(device).eval()
    model = L2PTransformer("z-image", config).to(device).eval()
    captions = [torch.randn(10 + 23 * n, 256, device=device) for n in range(count)]
    conditioning = [{"caption": caption} for caption in captions]
    pixels = torch.randn(count, 3, options.side, options.side, device=device)
    latents = list(torch.randn(count, 16, 1, options.side // 8, options.side // 8, device=device))
    sigma = torch.linspace(0.1, 0.9, count, device=device)

    def without_gradients(run: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(run)

    def training(end: int | None) -> Callable[[], Any]:
        """Forward and backward with `end` blocks at each end trainable, or everything."""

        def run() -> None:
            blocks = model.block_names()
            frozen = tuple(f"{name}." for name in (blocks[end:-end] if end else []))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not name.startswith(frozen) if frozen else True)
            model(pixels, sigma, conditioning).square().mean().backward()
            model.zero_grad()

        return run

    return {
        "diffusers": without_gradients(lambda: source(latents, 1 - sigma, captions)),
        "ours": without_gradients(lambda: model(pixels, sigma, conditioning)),
        "trunk": without_gradients(
            lambda: model.source_family.run(model.trunk, pixels_to_patches(pixels, 16), sigma, conditioning)
        ),
        "one at a time": without_gradients(
            lambda: [model(pixels[n : n + 1], sigma[n : n + 1], [conditioning[n]]) for n in range(count)]
        ),
        "all trainable": training(None),
        "middle frozen": training(max(1, options.layers // 6)),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--side", type=int, default=256, help="px")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    runs = variants(options)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats + 1):
        for name, run in runs.items():
            started = time.process_time() if options.device == "cpu" else time.perf_counter()
            run()
            if options.device == "cuda":
                torch.cuda.synchronize()
            now = time.process_time() if options.device == "cpu" else time.perf_counter()
            seconds[name].append(now - started)
    best = {name: min(values[1:]) for name, values in seconds.items()}
    result = {
        "seconds": {name: round(value, 3) for name, value in best.items()},
        "over_diffusers": {
            name: round(best[name] / best["diffusers"], 3) for name in ("ours", "trunk", "one at a time")
        },
        "middle_frozen_over_all_trainable": round(best["middle frozen"] / best["all trainable"], 3),
    }
    print(json.dumps(vars(options) | result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

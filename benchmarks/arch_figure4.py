"""Figure 4 at full size, counted: one image at 4K from the source (with its VAE) and from L2P (patch 64).

    uv run python benchmarks/arch_figure4.py [--side 4096] [--steps 30]

Z-Image's own sizes in bfloat16 on meta tensors: no weights, no GPU, a few seconds. The paper measured latency
(-97.67 %) and memory (-38.81 %) on a GPU; this counts operations and bytes, which bound them. Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from l2p_arch import L2PTransformer
from l2p_eval.efficiency import Count, count

TEXT_TOKENS = 128
HEADS = {16: (64, 128, 256, 512), 64: (16, 32, 64, 128, 256, 512)}
VAE: dict[str, Any] = {
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def source(side: int) -> tuple[Count, Count | None]:
    """One step of the latent transformer and the VAE's decoding."""
    trunk = ZImageTransformer2DModel().bfloat16()
    vae = AutoencoderKL(**VAE).bfloat16()
    latents = torch.empty(1, 16, side // 8, side // 8, dtype=torch.bfloat16)
    caption = torch.empty(TEXT_TOKENS, 2560, dtype=torch.bfloat16)
    step = count(lambda: trunk([latents[0].unsqueeze(1)], torch.ones(1), [caption]), trunk)
    return step, count(lambda: vae.decoder(latents), vae.decoder)


def pixel_space(side: int, patch_size: int, tile: int | None) -> tuple[Count, Count | None]:
    """One step of L2P; nothing is left to decode."""
    model = L2PTransformer("z-image", {"dim": 3840}, patch_size, HEADS[patch_size]).bfloat16()
    model.detailer_head.enable_tiling(tile)
    pixels = torch.empty(1, 3, side, side, dtype=torch.bfloat16)
    caption = {"caption": torch.empty(TEXT_TOKENS, 2560, dtype=torch.bfloat16)}
    return count(lambda: model(pixels, torch.ones(1), [caption]), model), None


def summary(step: Count, decode: Count | None, steps: int) -> dict[str, float]:
    """TFLOP and GB of one image without guidance."""
    decode = decode or Count(flops=0, peak_activation_bytes=0, weight_bytes=0)
    weights = step.weight_bytes + decode.weight_bytes
    return {
        "tflop_per_step": round(step.flops / 1e12, 1),
        "tflop_decode": round(decode.flops / 1e12, 1),
        "tflop_per_image": round((steps * step.flops + decode.flops) / 1e12, 1),
        "gb_weights": round(weights / 1e9, 2),
        "gb_activations_step": round(step.peak_activation_bytes / 1e9, 2),
        "gb_activations_decode": round(decode.peak_activation_bytes / 1e9, 2),
        "gb_peak": round((weights + max(step.peak_activation_bytes, decode.peak_activation_bytes)) / 1e9, 2),
    }


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=4096, help="px (default 4096)")
    parser.add_argument("--patch-size", type=int, default=64, choices=HEADS)
    parser.add_argument("--steps", type=int, default=30, help="sampling steps of an image (default 30)")
    options = parser.parse_args()
    with torch.device("meta"):
        results = {
            "source": summary(*source(options.side), options.steps),
            "l2p": summary(*pixel_space(options.side, options.patch_size, None), options.steps),
            "l2p, head in tiles of 1024": summary(
                *pixel_space(options.side, options.patch_size, 1024), options.steps
            ),
        }
    base = results["source"]
    for name in [name for name in results if name != "source"]:
        for key in ("tflop_per_step", "tflop_per_image", "gb_peak"):
            change = 100 * (results[name][key] / base[key] - 1)
            results[name][f"{key}_change_percent"] = round(change, 2)
    print(json.dumps({"side": options.side, "steps": options.steps, **results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

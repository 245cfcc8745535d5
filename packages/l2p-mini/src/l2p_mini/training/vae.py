"""Train the miniature's VAE (AutoencoderKL, f8, 16 channels) on rendered scenes.

torchrun --nproc-per-node 2 -m l2p_mini.training.vae --output runs/source-vae
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from l2p_mini.architecture import VAE
from l2p_mini.grammar import draw_prompt, draw_scene, is_held_out, parse
from l2p_mini.training.run import Run
from l2p_mini.world import BASE_SIZE, Scene, render

KL_WEIGHT = 3e-4  # of the mean KL divergence per latent value, in nats, against a pixel error of about 0.03


def training_scene(rng: random.Random) -> tuple[str, Scene]:
    """Draw a prompt that is not held out, and a scene in which it is true."""
    while is_held_out(prompt := draw_prompt(rng)):
        pass
    return prompt, draw_scene(parse(prompt), rng)


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """Return (B, 3, H, W) in [-1, 1], channels last in memory."""
    array = np.stack([np.asarray(image) for image in images])
    return rearrange(torch.from_numpy(array), "b h w c -> b c h w").float().div(127.5).sub(1)


def to_images(pixels: torch.Tensor) -> Image.Image:
    """Return one image of a (rows, columns, 3, H, W) grid of pixels in [-1, 1]."""
    grid = rearrange(pixels, "r k c h w -> (r h) (k w) c")
    return Image.fromarray(grid.float().add(1).mul(127.5).round().clamp(0, 255).byte().numpy())


def batch(seed: int, step: int, rank: int, size: int) -> torch.Tensor:
    rng = random.Random(f"{seed}-{step}-{rank}")
    return to_pixels([render(training_scene(rng)[1], BASE_SIZE) for _ in range(size)])


def psnr(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of pixels in [-1, 1]."""
    return float(10 * torch.log10(4 / (x.float() - y.float()).square().mean()))


@torch.no_grad()
def normalise_latents(vae: Any, pixels: torch.Tensor) -> None:
    """Set the VAE's shift and scale so that its latents of these pixels have mean 0 and standard deviation
    1."""
    means = vae.encode(pixels).latent_dist.mean
    vae.register_to_config(shift_factor=means.mean().item(), scaling_factor=1 / means.std().item())


def reconstruction_loss(
    vae: Any, pixels: torch.Tensor, noise: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, KL divergence per latent value, decoded pixels) of one batch."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean.float() + posterior.std.float() * torch.randn(
            posterior.mean.shape, generator=noise
        )
        decoded = vae.decode(latents).sample
    error = decoded.float() - pixels
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl.float(), kl, decoded.detach()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/source-vae"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="images per process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stop-after", type=int, help="stop after this step with a checkpoint; default: all steps"
    )
    return parser.parse_args()


def main() -> None:
    from diffusers import AutoencoderKL

    args = parse_arguments()
    run = Run(output=args.output, steps=args.steps)
    torch.manual_seed(args.seed)
    vae = AutoencoderKL(**VAE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    first = run.resume(vae=vae, optimizer=optimizer)
    last = min(args.steps, args.stop_after or args.steps)
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * run.learning_rate(step)
        pixels = batch(args.seed, step, run.rank, args.batch)
        noise = torch.Generator().manual_seed(step * run.world_size + run.rank)
        loss, kl, decoded = reconstruction_loss(vae, pixels, noise)
        loss.backward()
        run.average_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            run.log(step, loss=loss.item(), kl=kl.item(), psnr=psnr(decoded, pixels))
        if (step + 1) % run.save_every == 0 or step + 1 == last:
            run.save(step + 1, vae=vae, optimizer=optimizer)
            if run.rank == 0:
                pair = torch.stack([pixels[:8], decoded[:8].float()])
                to_images(pair).resize((8 * 128, 2 * 128), Image.Resampling.NEAREST).save(
                    args.output / "samples.png"
                )
    if run.rank == 0 and last == args.steps:
        normalise_latents(vae, torch.cat([batch(args.seed + 1, step, 0, 64) for step in range(8)]))
        vae.save_pretrained(args.output / "vae")


if __name__ == "__main__":
    main()

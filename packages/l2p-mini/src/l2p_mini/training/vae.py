r"""Train the miniature's VAE (AutoencoderKL, f8, 16 channels) on rendered scenes.

    torchrun --nproc-per-node 2 -m l2p_mini.training.vae --output runs/source-vae

A decoder alone, for a VAE whose latents other models already know (its encoder, shift and scale stay):

    python -m l2p_mini.training.vae --initial VAE --freeze-encoder --latent-noise 0.15 --edge-weight 1 \
        --steps 3000 --batch 32 --learning-rate 1e-3 --output runs/decoder
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
from l2p_mini.grammar import TEMPLATES, draw_prompt, draw_scene, is_held_out, parse
from l2p_mini.training.run import Ema, Run
from l2p_mini.world import BASE_SIZE, Scene, render

KL_WEIGHT = 3e-4  # of the mean KL divergence per latent value, in nats, against a pixel error of about 0.03


def training_scene(rng: random.Random, tag: str | None = None) -> tuple[str, Scene]:
    """Draw a prompt that is not held out, of a task or of any, and a scene in which it is true."""
    while is_held_out(prompt := draw_prompt(rng, tag)):
        pass
    return prompt, draw_scene(parse(prompt), rng)


def task_share(text: str) -> tuple[str, float]:
    """Read TASK=SHARE. Raises argparse's error for another task or a share outside [0, 1]."""
    task, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if task not in TEMPLATES or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share of a task; give TASK=SHARE with one of {', '.join(TEMPLATES)} and 0 to 1"
        )
    return task, value


def held_out(rng: random.Random) -> str:
    """Draw a prompt that is never trained on."""
    while not is_held_out(prompt := draw_prompt(rng)):
        pass
    return prompt


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


def latents_of(
    vae: Any, pixels: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return samples of the posterior (B, 16, h, w) and the KL divergence per latent value."""
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.mean.float() + posterior.std.float() * torch.randn(
        posterior.mean.shape, generator=generator
    )
    return latents, posterior.kl().mean() / posterior.mean[0].numel()


@torch.no_grad()
def noisy_latents(
    vae: Any, pixels: torch.Tensor, strength: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents (B, 16, h, w) as a diffusion model would leave them, and no KL divergence: the encoder's
    means and noise of up to `strength` times their standard deviation, another amount for every image."""
    means = vae.encode(pixels).latent_dist.mean.float()
    amount = strength / vae.config.scaling_factor * torch.rand(len(means), 1, 1, 1, generator=generator)
    return means + amount * torch.randn(means.shape, generator=generator), torch.zeros(())


def edge_error(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error of the differences between neighbours: blur and ringing cost twice."""
    error = decoded - pixels
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def reconstruction_loss(
    vae: Any, pixels: torch.Tensor, args: argparse.Namespace, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, KL divergence per latent value, decoded pixels) of one batch."""
    with torch.autocast("cpu", torch.bfloat16):
        if args.freeze_encoder:
            latents, kl = noisy_latents(vae, pixels, args.latent_noise, generator)
        else:
            latents, kl = latents_of(vae, pixels, generator)
        decoded = vae.decode(latents).sample
    decoded = decoded.float()
    error = decoded - pixels
    loss = error.abs().mean() + error.square().mean() + KL_WEIGHT * kl.float()
    return loss + args.edge_weight * edge_error(decoded, pixels), kl, decoded.detach()


@torch.no_grad()
def show(vae: Any, path: Path) -> float:
    """Write eight held-out scenes above their reconstructions; return the PSNR in dB of 256."""
    rng = random.Random("show")
    pixels = to_pixels([render(draw_scene(parse(held_out(rng)), rng), BASE_SIZE) for _ in range(256)])
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    pair = torch.stack([pixels[:8], decoded[:8]])
    to_images(pair).resize((8 * 256, 2 * 256), Image.Resampling.NEAREST).save(path)
    return psnr(decoded, pixels)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/source-vae"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="images per process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--initial", type=Path, help="a VAE's directory to go on from; default: random weights"
    )
    parser.add_argument(
        "--freeze-encoder", action="store_true", help="train the decoder alone, on the encoder's means"
    )
    parser.add_argument(
        "--latent-noise",
        type=float,
        default=0.0,
        help="with --freeze-encoder: noise on the means, up to this many of their standard deviations",
    )
    parser.add_argument(
        "--edge-weight", type=float, default=0.0, help="of the error of neighbours' differences"
    )
    parser.add_argument(
        "--ema-decay", type=float, default=0.998, help="of the average of weights that is saved"
    )
    parser.add_argument(
        "--stop-after", type=int, help="stop after this step with a checkpoint; default: all steps"
    )
    return parser.parse_args()


def build_vae(initial: Path | None, freeze_encoder: bool) -> Any:
    """Return the VAE to train, in float32."""
    from diffusers import AutoencoderKL

    if initial:
        vae = AutoencoderKL.from_pretrained(initial, local_files_only=True, use_safetensors=True)
    else:
        vae = AutoencoderKL(**VAE)
    vae.encoder.requires_grad_(not freeze_encoder)
    return vae.float().train().to(memory_format=torch.channels_last)


def main() -> None:
    args = parse_arguments()
    run = Run(output=args.output, steps=args.steps)
    torch.manual_seed(args.seed)
    vae = build_vae(args.initial, args.freeze_encoder)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    ema = Ema(vae, args.ema_decay)
    first = run.resume(vae=vae, optimizer=optimizer, ema=ema)
    last = min(args.steps, args.stop_after or args.steps)
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * run.learning_rate(step)
        pixels = batch(args.seed, step, run.rank, args.batch)
        noise = torch.Generator().manual_seed(step * run.world_size + run.rank)
        loss, kl, decoded = reconstruction_loss(vae, pixels, args, noise)
        loss.backward()
        run.average_gradients(trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(vae, step)
        if step % 20 == 0:
            run.log(step, loss=loss.item(), kl=kl.item(), psnr=psnr(decoded, pixels))
        if (step + 1) % run.save_every == 0 or step + 1 == last:
            run.save(step + 1, vae=vae, optimizer=optimizer, ema=ema)
            if run.rank == 0:
                ema.swap(vae)
                run.log(step + 1, held_out_psnr=show(vae, args.output / "samples.png"))
                if args.freeze_encoder:
                    vae.save_pretrained(args.output / "vae")
                ema.swap(vae)
    if run.rank == 0 and last == args.steps:
        ema.swap(vae)
        if not args.freeze_encoder:
            normalise_latents(vae, torch.cat([batch(args.seed + 1, step, 0, 64) for step in range(8)]))
        vae.save_pretrained(args.output / "vae")


if __name__ == "__main__":
    main()

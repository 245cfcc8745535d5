"""Measure a source model of the miniature: score by GenEval's rules, and what its VAE lets through.

    uv run python scripts/score_source.py packages/l2p-mini/src/l2p_mini/source_model

Prints one JSON object; its numbers are those of the model's card. `--pictures FILE` also writes a sheet of
every prompt's first image, four times enlarged, wrong ones framed in red.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline
from l2p_eval.geneval import GenEvalPrompt, ImageScore, judge, read_metadata, summarise
from l2p_eval.painting import Job, plan_jobs
from l2p_mini.detector import ExactDetector
from l2p_mini.grammar import draw_scene, parse
from l2p_mini.paths import EVALUATION_METADATA, SOURCE_MODEL
from l2p_mini.training.vae import psnr, to_pixels
from l2p_mini.world import BASE_SIZE, render
from PIL import Image, ImageOps


def score(images: Sequence[Image.Image], jobs: Sequence[Job], prompts: Sequence[GenEvalPrompt]) -> list[Any]:
    """Return a verdict for every image, in order."""
    detector = ExactDetector()
    verdicts = [
        (prompts[job.prompt_index], judge(prompts[job.prompt_index], detector.detect(image)))
        for job, image in zip(jobs, images, strict=True)
    ]
    return [
        ImageScore(
            prompt_index=job.prompt_index,
            sample=job.sample,
            tag=prompt.tag,
            prompt=prompt.prompt,
            correct=verdict.correct,
            reason=verdict.reason,
            path="",
        )
        for job, (prompt, verdict) in zip(jobs, verdicts, strict=True)
    ]


@torch.inference_mode()
def paint(pipeline: Any, jobs: Sequence[Job], steps: int, guidance: float) -> list[Image.Image]:
    """Return one image of every job; an image depends on its own seed alone."""
    images = []
    for first in range(0, len(jobs), 32):
        some = jobs[first : first + 32]
        images += pipeline(
            prompt=[job.prompt for job in some],
            generator=[torch.Generator().manual_seed(job.seed) for job in some],
            height=BASE_SIZE,
            width=BASE_SIZE,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=32,
        ).images
    return images


@torch.inference_mode()
def reconstruct(vae: Any, jobs: Sequence[Job]) -> tuple[float, list[Image.Image]]:
    """Return the PSNR in dB of rendered scenes of the prompts after the VAE, and the decoded images."""
    scenes = [draw_scene(parse(job.prompt), random.Random(job.seed)) for job in jobs]
    pixels = to_pixels([render(scene, BASE_SIZE) for scene in scenes])
    decoded = torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample for p in pixels.split(60)])
    arrays = decoded.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return psnr(decoded.clamp(-1, 1), pixels), [Image.fromarray(array) for array in arrays]


def sheet(images: Sequence[Image.Image], scores: Sequence[Any], columns: int = 10) -> Image.Image:
    """Return the images four times enlarged, wrong ones framed in red."""
    side = 4 * BASE_SIZE + 8
    picture = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), "white")
    for index, (image, verdict) in enumerate(zip(images, scores, strict=True)):
        large = ImageOps.expand(
            image.resize((4 * BASE_SIZE,) * 2, Image.Resampling.NEAREST),
            4,
            "white" if verdict.correct else "red",
        )
        picture.paste(large, (index % columns * side, index // columns * side))
    return picture


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=SOURCE_MODEL)
    parser.add_argument("--images-per-prompt", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=2.0, help="in diffusers' sense")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--pictures", type=Path, help="a PNG of every prompt's first image")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    pipeline = ZImagePipeline.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts = read_metadata(EVALUATION_METADATA)
    jobs = plan_jobs([prompt.prompt for prompt in prompts], args.images_per_prompt, args.seed)
    images = paint(pipeline, jobs, args.steps, args.guidance)
    scores = score(images, jobs, prompts)
    decibels, decoded = reconstruct(pipeline.vae.float(), jobs)
    result = {
        "images": len(images),
        "scores": summarise(scores).to_row(),
        "vae_psnr": round(decibels, 2),
        "vae_read_back": summarise(score(decoded, jobs, prompts)).to_row(),
        "wrong": [f"{s.prompt} ({s.reason})" for s in scores if not s.correct],
    }
    print(json.dumps(result, indent=1))
    if args.pictures:
        first = [i for i, job in enumerate(jobs) if job.sample == 0]
        sheet([images[i] for i in first], [scores[i] for i in first]).save(args.pictures)


if __name__ == "__main__":
    main()

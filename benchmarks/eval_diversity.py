"""Fig. 5: are the pictures of one prompt as different over seeds as the source's?

    uv run python benchmarks/eval_diversity.py --publish docs/results

The same prompts over 8 seeds by the renderer (what the world allows), the source, the shipped pixel model,
and two controls that a diversity score must tell apart: "shared noise" is the pixel model with 95 % of its
first noise common to all seeds of a prompt, and "one picture" is its first picture again and again with
faint white noise. Two distances, mean over pairs of seeds, then over prompts: 1 - cosine of
efficientnet-lite0 features, and the absolute difference of 8 x 8 block means in [0, 1], which grain does
not reach. Run again to resume.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from l2p_eval.layout import image_path, open_image
from l2p_eval.metrics.features import load_extractor
from l2p_eval.painting import Model, Pictures, model_settings
from l2p_eval.report.pictures import grid_sheet
from l2p_eval.scores import diversity
from l2p_mini.paths import PIXEL_MODEL, SOURCE_MODEL
from l2p_mini.pictures import render_prompt
from l2p_run.devices import resolve_dtype
from painted import PIXEL, SOURCE, finish, model_of, parser_of, pictures_of, some_prompts, spread, verdict
from PIL import Image

SEEDS = 8
BLOCKS = 8
COMMON = 0.95  # of the first noise, as a share of its norm
FAINT = 4.0  # of 255
KEPT = 0.9  # of the source's diversity, for the claim to be true of a set


@dataclass(frozen=True)
class SharedNoise:
    """The pixel model from noises that have most in common within a prompt."""

    options: dict[str, Any]
    dtype: str

    def __call__(self, device: str) -> Any:
        from l2p_arch.sampling.initial_state import draw_noise, generators_of
        from l2p_arch.sampling.loading import load_pipeline

        pipeline = load_pipeline(PIXEL_MODEL, device=device, dtype=self.dtype)
        pipeline.set_progress_bar_config(disable=True)

        def paint(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
            own = draw_noise(generators_of(len(seeds), seeds), 64, 64)
            of_prompts = [zlib.crc32(prompt.encode()) for prompt in prompts]
            common = draw_noise(generators_of(len(prompts), of_prompts), 64, 64)
            noise = COMMON * common + (1 - COMMON**2) ** 0.5 * own
            images: list[Image.Image] = pipeline(prompt=list(prompts), latents=noise, **self.options).images
            return images

        return paint


class Renderer:
    """Scenes of the world in which the prompts are true."""

    def __call__(self, device: str) -> Any:
        return lambda prompts, seeds: [
            render_prompt(prompt, seed, 64) for prompt, seed in zip(prompts, seeds, strict=True)
        ]


@dataclass(frozen=True)
class OnePicture:
    """The first picture of each prompt again and again, with faint noise."""

    first: dict[str, Path]

    def __call__(self, device: str) -> Any:
        def paint(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
            images = []
            for prompt, seed in zip(prompts, seeds, strict=True):
                pixels = np.asarray(open_image(self.first[prompt]), np.float64)
                noisy = pixels + np.random.default_rng(seed).normal(0, FAINT, pixels.shape)
                images.append(Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)))
            return images

        return paint


def block_distance(pictures: Pictures) -> float:
    """Return how far apart the block means of two pictures of a prompt are, on average."""
    groups: dict[str, list[Any]] = {}
    for path, prompt in zip(pictures.paths, pictures.prompts, strict=True):
        small = open_image(path).resize((BLOCKS, BLOCKS), Image.Resampling.BOX)
        groups.setdefault(prompt, []).append(np.asarray(small, np.float64) / 255)
    return fmean(
        fmean(float(np.abs(a - b).mean()) for a, b in combinations(images, 2)) for images in groups.values()
    )


def main() -> None:
    """Paint, compare and print."""
    parser = parser_of(__doc__ or "", sets=2)
    parser.add_argument("--per-task", type=int, default=4, help="prompts of each task (default: %(default)s)")
    options = parser.parse_args()
    prompts = [row.prompt for row in some_prompts(options.per_task)]
    dtype = resolve_dtype("auto")
    pixel = {"height": 64, "width": 64, **PIXEL}
    shared = model_settings(PIXEL_MODEL, dtype, {**pixel, "common noise": COMMON})
    models = {
        "renderer": Model(load=Renderer(), settings={"renderer": "l2p-mini"}),
        "source": model_of(SOURCE_MODEL, SOURCE),
        "l2p": model_of(PIXEL_MODEL, PIXEL),
        "shared noise": Model(load=SharedNoise(pixel, dtype), settings=shared),
    }
    extractor = load_extractor("efficientnet-lite0")
    features: dict[str, list[float]] = {}
    blocks: dict[str, list[float]] = {}
    folder = options.output / "diversity"
    for number in range(options.sets):
        for name in (*models, "one picture"):
            model = models.get(name)
            if model is None:
                at = folder / "l2p" / f"set-{number}"
                first = {prompt: image_path(at, index, 0) for index, prompt in enumerate(prompts)}
                model = Model(load=OnePicture(first), settings={"noise of 255": FAINT})
            pictures = pictures_of(name, model, prompts, folder / name, number=number, each=SEEDS)
            features.setdefault(name, []).append(diversity(pictures, extractor).headline)
            blocks.setdefault(name, []).append(block_distance(pictures))
    both = {"features": features, "blocks": blocks}
    true = [
        all(each["l2p"][k] >= KEPT * each["source"][k] for each in both.values()) for k in range(options.sets)
    ]
    told = [
        all(
            max(each["shared noise"][k], each["one picture"][k]) < each["l2p"][k] / 2
            for each in both.values()
        )
        for k in range(options.sets)
    ]
    shown = prompts[:: max(1, len(prompts) // 3)][:3]
    rows = [
        (
            f"{name}: {prompt}",
            [image_path(folder / name / "set-0", prompts.index(prompt), k) for k in range(SEEDS)],
        )
        for prompt in shown
        for name in (*models, "one picture")
    ]
    grid_sheet(rows, side=96).save(options.output / "diversity.png")
    finish(
        "diversity",
        {
            "prompts": len(prompts),
            "seeds": SEEDS,
            "claim": f"L2P keeps {KEPT:.0%} of its source's diversity by both distances",
            "verdict": verdict(true),
            "controls are below half of L2P's": verdict(told),
            **{kind: {name: spread(values) for name, values in each.items()} for kind, each in both.items()},
        },
        options,
    )


if __name__ == "__main__":
    main()

"""The miniature twin of 4K: train 64 px -> 256 px with patch 64, and measure native detail, with pictures.

    uv run python benchmarks/train_high_resolution.py configs/high-resolution/mini-4k.toml

The miniature's world has fine patterns at 256 px that average out at 64 px. Native detail is the share of its
background's pattern that an image carries (projection onto the pattern: 1 is the renderer's, 0 is none,
and noise is neither). An upsampled image of the 64 px model must have none; a renderer's image has 1.
Beside it stands the share of evaluation prompts whose objects are there, by the rules of GenEval.
Prints one JSON object; writes detail.png beside the run. Run again to resume.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from l2p_mini.grammar import draw_prompt, draw_scene, is_held_out, parse
from l2p_mini.world import BACKGROUNDS, BASE_SIZE, Scene, render
from PIL import Image

SHIFT = 3.0
"""Of the 64 px model's sampling."""


def write_renders(folder: Path, count: int, size: int) -> None:
    """Write a corpus of rendered scenes with training prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random(0), []
    while len(rows) < count:
        prompt = draw_prompt(rng)
        if is_held_out(prompt):
            continue
        buffer = io.BytesIO()
        render(draw_scene(parse(prompt), rng), size).save(buffer, format="PNG")
        rows.append(
            {
                "id": f"render-{len(rows):05d}",
                "prompt": prompt,
                "width": size,
                "height": size,
                "image": {"bytes": buffer.getvalue(), "path": None},
            }
        )
    temporary = folder / "part-00000.tmp"
    pq.write_table(pa.Table.from_pylist(rows), temporary, row_group_size=64)
    temporary.rename(folder / "part-00000.parquet")


def held_out_prompts(count: int) -> list[str]:
    """Return prompts that no training saw, each with a background."""
    rng, found = random.Random(1), dict[str, None]()
    while len(found) < count:
        prompt = draw_prompt(rng)
        if is_held_out(prompt) and parse(prompt).background:
            found[prompt] = None
    return list(found)


def detail(pixels: np.ndarray) -> np.ndarray:
    """Return what is left of grey (H, W) without its means over the pattern's period."""
    from scipy.ndimage import uniform_filter

    grey = pixels.mean(-1).astype(np.float64)
    return grey - uniform_filter(grey, size=grey.shape[0] // BASE_SIZE)


def native_detail(image: Image.Image, background: str) -> float | None:
    """Return the share of the background's pattern that an image carries, None if it shows no background."""
    from scipy.ndimage import uniform_filter

    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    smooth = np.stack([uniform_filter(pixels[..., channel], size=9) for channel in range(3)], axis=-1)
    plain = np.abs(smooth - np.array(BACKGROUNDS[background])).max(-1) < 30
    if plain.mean() < 0.1:
        return None
    pattern = detail(np.asarray(render(Scene(background=background, objects=()), image.width)))
    found = detail(pixels)
    return float((found * pattern)[plain].sum() / (pattern**2)[plain].sum())


def paint(
    model: Path, prompts: list[str], size: int, settings: dict[str, Any], shift: float
) -> list[Image.Image]:
    """Return one image per prompt."""
    import torch
    from l2p_arch import L2PPipeline

    # `to` would round the maps of an aligned model, too.
    pipeline = L2PPipeline.from_pretrained(model, local_files_only=True, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for first in range(0, len(prompts), 8):
        some = prompts[first : first + 8]
        images += pipeline(
            some,
            height=size,
            width=size,
            num_inference_steps=settings["num_inference_steps"],
            guidance_scale=settings["guidance_scale"],
            noise_shift=shift,
            seeds=list(range(first, first + len(some))),
            max_sequence_length=32,
        ).images
    return images


def sheet(rows: list[list[Image.Image]], crop: int) -> Image.Image:
    """Return a picture: each row of images, and below it the middle of each, enlarged four times."""
    side, columns = rows[0][0].width, len(rows[0])
    out = Image.new("RGB", (columns * (side + 4) - 4, 2 * len(rows) * (side + 4) - 4), "white")
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            corner = (8, 8, 8 + crop, 8 + crop)
            out.paste(image, (x * (side + 4), 2 * y * (side + 4)))
            enlarged = image.crop(corner).resize((side, side), Image.Resampling.NEAREST)
            out.paste(enlarged, (x * (side + 4), (2 * y + 1) * (side + 4)))
    return out


def train(tables: dict[str, Any], base: Path, start: Path | None, processes: int) -> tuple[Any, Any]:
    """Write renders and the enlarged model where they are not there yet, and train; (result, its config).

    `start` is an enlarged model to go on from, None to enlarge `base`.
    """
    from l2p_arch import upscale
    from l2p_train import config_from_mapping, launch

    output = Path(tables["train"]["output"])
    corpus, initial = output / "renders", output / "initial"
    if not (corpus / "part-00000.parquet").is_file():
        write_renders(corpus, tables["data"]["count"], tables["data"]["size"])
    if start is None and not initial.is_dir():
        upscale(base, initial, **tables["surgery"])
    places = {"model": str(start or initial), "corpus": str(corpus), "output": str(output / "train")}
    config = config_from_mapping(tables["train"] | places)

    def tell(event: dict[str, Any]) -> None:
        shown = {k: v for k, v in event.items() if k in ("event", "step", "loss", "eta_seconds")}
        print(shown, file=sys.stderr)

    return launch(config, processes, on_event=tell), config


def shapes(model: Path, size: int, settings: dict[str, Any], shift: float) -> float:
    """Return the share of evaluation prompts, equally many of each task, whose objects their image shows."""
    from l2p_eval.geneval import judge, read_metadata
    from l2p_mini.detector import ExactDetector
    from l2p_mini.paths import EVALUATION_METADATA

    every = read_metadata(EVALUATION_METADATA)
    tags = list(dict.fromkeys(prompt.tag for prompt in every))
    count = settings["images"] // len(tags)
    chosen = [prompt for tag in tags for prompt in [one for one in every if one.tag == tag][:count]]
    images = paint(model, [prompt.prompt for prompt in chosen], size, settings, shift)
    detector = ExactDetector()
    pairs = zip(chosen, images, strict=True)
    return float(np.mean([judge(prompt, detector.detect(image)).correct for prompt, image in pairs]))


def measure(
    native: Path, base: Path, tables: dict[str, Any], shift: float, pictures: Path
) -> dict[str, dict[str, float]]:
    """Return the native detail of held-out prompts by who painted them; draws the first six of each."""
    size, settings = tables["data"]["size"], tables["measure"]
    prompts = held_out_prompts(settings["images"])
    small = paint(base, prompts, BASE_SIZE, settings, SHIFT)
    rng = random.Random(2)
    kinds = {
        "native 256 px": paint(native, prompts, size, settings, shift),
        "64 px, upsampled": [image.resize((size, size), Image.Resampling.LANCZOS) for image in small],
        "renderer": [render(draw_scene(parse(prompt), rng), size) for prompt in prompts],
    }
    sheet([images[:6] for images in kinds.values()], crop=size // 4).save(pictures)
    summary = {}
    for kind, images in kinds.items():
        shares = [
            native_detail(image, str(parse(prompt).background))
            for image, prompt in zip(images, prompts, strict=True)
        ]
        found = [share for share in shares if share is not None]
        summary[kind] = {
            "mean": round(float(np.mean(found)), 4),
            "least": round(min(found), 4),
            "most": round(max(found), 4),
            "images": len(found),
        }
    return summary


def main() -> int:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--base", type=Path, help="the 64 px model, in place of base.model")
    parser.add_argument("--start", type=Path, help="go on from this model of an earlier run")
    parser.add_argument("-o", "--output", type=Path, help="in place of train.output")
    parser.add_argument("--steps", type=int, help="in place of train.steps")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    tables = tomllib.loads(options.config.read_text(encoding="utf-8"))
    base = options.base or Path(tables["base"]["model"])
    for model in (base, options.start or base):
        if not (model / "model_index.json").is_file():
            print(
                f"error: no model in {model}; start in the repository's root, or give another",
                file=sys.stderr,
            )
            return 2
    if options.steps is not None and options.steps < 1:
        print(f"error: --steps {options.steps} is no number of steps; give 1 or more", file=sys.stderr)
        return 2
    tables["train"] |= {"steps": options.steps} if options.steps else {}
    tables["train"] |= {"output": str(options.output)} if options.output else {}
    result, config = train(tables, base, options.start, options.processes)
    pictures = Path(tables["train"]["output"]) / "detail.png"
    native, settings = Path(result.model), tables["measure"]
    shift = settings.get("noise_shift", config.noise_shift)
    found = {
        "native_detail": measure(native, base, tables, shift, pictures),
        "shapes": {
            "native": shapes(native, tables["data"]["size"], settings, shift),
            "base": shapes(base, BASE_SIZE, settings, SHIFT),
        },
        "steps": result.steps,
        "loss": round(result.loss, 5),
        "train_seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "pictures": str(pictures),
    }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

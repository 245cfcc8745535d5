"""What `l2p-arch quantise` costs and saves on the shipped miniature: bytes of weights, difference of the
pictures, score, Frechet distance and processor time, for the model as it is and in 8 bits.

    uv run python benchmarks/arch_quantised.py [--model DIRECTORY] [--images 120]

All paint the same prompts with the same seeds. Prints a table in Markdown and one JSON object. The Frechet
distance is from rendered scenes of the prompts, by EfficientNet-Lite0; it is biased upwards for few images,
for all alike.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from l2p_arch import quantise
from l2p_arch.sampling.painter import load_pipeline, paint_images, sampling_defaults
from l2p_eval.geneval import judge, read_metadata
from l2p_eval.metrics.features import extract_features, load_extractor
from l2p_eval.metrics.frechet import frechet_distance
from l2p_mini.detector import ExactDetector
from l2p_mini.grammar import draw_scene, parse
from l2p_mini.paths import EVALUATION_METADATA, PIXEL_MODEL
from l2p_mini.world import render
from PIL import Image

BATCH = 8


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=PIXEL_MODEL)
    parser.add_argument("--images", type=int, default=120)
    options = parser.parse_args()
    every = read_metadata(EVALUATION_METADATA)
    prompts = [every[number * len(every) // options.images] for number in range(options.images)]
    extractor = load_extractor("efficientnet-lite0")
    scenes = [draw_scene(parse(each.prompt), random.Random(number)) for number, each in enumerate(prompts)]
    reference = extract_features(extractor, [render(scene) for scene in scenes])
    rows: list[dict[str, Any]] = []
    first: list[Image.Image] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("float32", "int8", "fp8"):
            model = options.model
            if kind != "float32":
                model = Path(folder) / kind
                quantise(options.model, model, kind=kind)
            images, seconds = painted(model, [each.prompt for each in prompts])
            first = first or images
            verdicts = [
                judge(prompt, ExactDetector().detect(image)).correct
                for prompt, image in zip(prompts, images, strict=True)
            ]
            rows.append(
                {
                    "weights": kind,
                    "megabytes": weight_bytes(model) / 1e6,
                    "psnr_db": psnr(first, images),
                    "score": sum(verdicts) / len(verdicts),
                    "frechet_distance": frechet_distance(reference, extract_features(extractor, images)),
                    "cpu_seconds_per_image": seconds / len(images),
                }
            )
    print(table(rows))
    print(json.dumps({"images": options.images, "threads": torch.get_num_threads(), "rows": rows}, indent=1))


def painted(model: Path, prompts: Sequence[str]) -> tuple[list[Image.Image], float]:
    """Images of the prompts, in float32, and the processor's seconds."""
    pipeline = load_pipeline(model, device="cpu", dtype="float32")
    options = sampling_defaults(model).options
    paint_images(pipeline, prompts[:1], [0], **options)  # warm
    started, images = time.process_time(), []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        images += paint_images(pipeline, some, range(start, start + len(some)), **options)
    return images, time.process_time() - started


def weight_bytes(model: Path) -> int:
    """Of the transformer's files."""
    return sum(path.stat().st_size for path in (model / "transformer").glob("*.safetensors"))


def psnr(reference: Sequence[Image.Image], images: Sequence[Image.Image]) -> float:
    """Of two sets as a whole, dB; infinity where nothing differs."""
    pairs = zip(reference, images, strict=True)
    errors = [np.mean((np.asarray(one, np.float64) - np.asarray(two, np.float64)) ** 2) for one, two in pairs]
    error = float(np.mean(errors))
    return 10 * math.log10(255**2 / error) if error else math.inf


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| weights | file | PSNR | score | Frechet distance | CPU time an image |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = "" if math.isinf(row["psnr_db"]) else f"{row['psnr_db']:.1f} dB"
        lines.append(
            f"| {row['weights']} | {row['megabytes']:.1f} MB | {same} | {row['score']:.3f}"
            f" | {row['frechet_distance']:.1f} | {row['cpu_seconds_per_image']:.2f} s |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

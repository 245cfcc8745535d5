"""Fig. 8: the source painted at four times its size, its pictures enlarged, and the pixel model's own.

    uv run python benchmarks/eval_resolution.py --publish docs/results [--native MODEL]

At 256 px, from the same prompts: the source asked for 256 px, the source's 64 px pictures enlarged
(Lanczos), and a pixel model with patch 64. Without --native that is the shipped one enlarged by
`l2p_arch.upscale`, untrained: it begins as its own small picture. Each has the share of prompts whose
objects are there (GenEval's rules), the detail that no 64 px picture can hold (root mean square of a
picture minus the enlargement of its 4 x 4 means, of 255; noise counts, too), and the share of the world's
own pattern on its background (1: the renderer's; noise counts as 0). Run again to resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from l2p_eval.layout import open_image
from l2p_eval.painting import Model, Pictures
from l2p_eval.report.pictures import grid_sheet
from l2p_eval.scores import geneval
from l2p_mini.detector import ExactDetector
from l2p_mini.grammar import parse
from l2p_mini.paths import PIXEL_MODEL, SOURCE_MODEL
from l2p_mini.pictures import render_prompt
from painted import PIXEL, SOURCE, finish, model_of, parser_of, pictures_of, some_prompts, spread, verdict
from PIL import Image
from train_high_resolution import native_detail

SIZE, SMALL = 256, 64  # px
ENLARGEMENT = Image.Resampling.LANCZOS


class Renderer:
    """Scenes of the world at full size, in which the prompts are true."""

    def __call__(self, device: str) -> Any:
        return lambda prompts, seeds: [
            render_prompt(prompt, seed, SIZE) for prompt, seed in zip(prompts, seeds, strict=True)
        ]


@dataclass(frozen=True)
class Enlarged:
    """A small model's pictures, enlarged."""

    small: Model

    def __call__(self, device: str) -> Any:
        paint = self.small.load(device)
        return lambda prompts, seeds: [
            image.resize((SIZE, SIZE), ENLARGEMENT) for image in paint(prompts, seeds)
        ]


def detail(path: Path) -> float:
    """Return the root mean square, of 255, of a picture minus the enlargement of its block means."""
    image = open_image(path)
    means = image.resize((SMALL, SMALL), Image.Resampling.BOX).resize(image.size, ENLARGEMENT)
    return float(np.sqrt(np.mean((np.asarray(image, np.float64) - np.asarray(means, np.float64)) ** 2)))


def pattern(pictures: Pictures) -> float:
    """Return the mean share of the background's pattern, over the pictures that show their background."""
    found = [
        native_detail(open_image(path), str(parse(prompt).background))
        for path, prompt in zip(pictures.paths, pictures.prompts, strict=True)
    ]
    seen = [share for share in found if share is not None]
    return fmean(seen) if seen else 0.0


def enlarged_start(folder: Path) -> Path:
    """Make the shipped pixel model with patch 64, before any training."""
    from l2p_arch import upscale

    if not (folder / "model_index.json").is_file():
        upscale(PIXEL_MODEL, folder, patch_size=64, head_channels=[12, 16, 16, 32, 64, 128])
    return folder


def verdicts(values: dict[str, dict[str, list[float]]], sets: int) -> dict[str, str]:
    """Return verdicts on the figure's statements, set by set."""
    score, fine, share = values["score"], values["detail"], values["pattern"]
    every = range(sets)
    statements: dict[str, Sequence[bool]] = {
        "the source fails at 256 px: it scores less than half of what its enlarged pictures score": [
            score["source, 256 px"][k] < score["source, enlarged"][k] / 2 for k in every
        ],
        "its enlarged pictures are blurred: they have less than half of the renderer's detail": [
            fine["source, enlarged"][k] < fine["renderer"][k] / 2 for k in every
        ],
        "native is no failure: it scores at least 0.9 of the enlarged pictures": [
            score["native"][k] >= 0.9 * score["source, enlarged"][k] for k in every
        ],
        "native is not blurred: it has at least half of the renderer's pattern": [
            share["native"][k] >= 0.5 * share["renderer"][k] for k in every
        ],
    }
    return {statement: verdict(true) for statement, true in statements.items()}


def main() -> None:
    """Paint, measure and print."""
    parser = parser_of(__doc__ or "", sets=2)
    parser.add_argument("--native", type=Path, metavar="MODEL", help="a pixel model of 256 px, trained")
    parser.add_argument("--per-task", type=int, default=5, help="prompts of each task (default: %(default)s)")
    options = parser.parse_args()
    rows = some_prompts(options.per_task, with_background=True)
    prompts, folder = [row.prompt for row in rows], options.output / "resolution"
    native = options.native or enlarged_start(folder / "enlarged-start")
    small = model_of(SOURCE_MODEL, SOURCE)
    models = {
        "renderer": Model(load=Renderer(), settings={"renderer": "l2p-mini"}),
        "source, 256 px": model_of(SOURCE_MODEL, SOURCE, SIZE),
        "source, enlarged": Model(load=Enlarged(small), settings={**small.settings, "enlarged": SIZE}),
        "native": model_of(native, PIXEL, SIZE),
    }
    values: dict[str, dict[str, list[float]]] = {"score": {}, "detail": {}, "pattern": {}}
    painted: dict[str, Pictures] = {}
    for number in range(options.sets):
        for name, model in models.items():
            at = folder / (f"native of {native.name}" if name == "native" else name)
            pictures = pictures_of(name, model, prompts, at, number=number, batch=8)
            painted.setdefault(name, pictures)
            scored = geneval(pictures, ExactDetector(), prompts=rows).whole()
            values["score"].setdefault(name, []).append(scored.headline)
            values["detail"].setdefault(name, []).append(fmean(map(detail, pictures.paths)))
            values["pattern"].setdefault(name, []).append(pattern(pictures))
    chosen = range(0, len(prompts), -(-len(prompts) // 6))
    sheet = [(name, [pictures.paths[index] for index in chosen]) for name, pictures in painted.items()]
    grid_sheet(sheet, captions=[prompts[index] for index in chosen], side=160).save(
        options.output / "resolution.png"
    )
    finish(
        "resolution",
        {
            "prompts": len(prompts),
            "native": "trained" if options.native else "the shipped model enlarged, untrained",
            "verdicts": verdicts(values, options.sets),
            **{kind: {name: spread(each) for name, each in of.items()} for kind, of in values.items()},
        },
        options,
    )


if __name__ == "__main__":
    main()

"""The flags of `l2p-generate` and what `l2p-generate serve` shares with them. Loads nothing heavy."""

import argparse
from pathlib import Path

from l2p_run.command import Parser, number, seed_argument

COUNT = number(int, ge=1, le=1 << 20)
SIDE = number(int, ge=1, le=1 << 16)
STEPS = number(int, ge=1, le=10_000)


def adapter(text: str) -> tuple[Path, float]:
    """Return a `type` of argparse: FILE or FILE:WEIGHT."""
    file, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or "\\" in weight:
        return Path(text), 1.0
    return Path(file), float(number(float, ge=-10, le=10)(weight))


def parser() -> Parser:
    """Return the parser of `l2p-generate PROMPT`."""
    made = Parser(
        prog="l2p-generate",
        package="l2p-generate",
        description="Text to image with an L2P model. `l2p-generate serve` opens a web page instead.",
    )
    add, own = made.add_argument, "; default: the model's own"
    add("prompt", nargs="*", metavar="PROMPT", help="what to paint; several prompts, several images")
    add_model_options(made)
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='one prompt a line, or JSON lines with "prompt" and "seed"; - is stdin',
    )
    add("--from-image", type=Path, metavar="FILE.png", help="paint this image again; other flags change it")
    add("-o", "--output", type=Path, default=Path("out.png"), metavar="FILE.png")
    add("--height", type=SIDE, metavar="PX", help="a multiple of the patch size" + own)
    add("--width", type=SIDE, metavar="PX", help="a multiple of the patch size" + own)
    add("--steps", type=STEPS, help="sampling steps" + own)
    add("--guidance", type=number(ge=0, le=1000), help="guidance scale, 1 or less is off" + own)
    add("--shift", type=number(ge=1e-3, le=1000), help="noise shift" + own)
    distilled = "that FLUX [dev] models embed"
    add("--distilled-guidance", type=number(ge=0, le=1000), metavar="S", help=distilled + own)
    add("--seed", type=seed_argument, help="of the first image of each prompt (default 42)")
    add("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    add("--image", type=Path, metavar="FILE", help="image-to-image: start from this picture")
    add(
        "--strength",
        type=number(ge=0, le=1),
        metavar="S",
        help="of image-to-image: 0 keeps the picture, 1 forgets it (default 0.6, with --mask 1)",
    )
    add(
        "--mask",
        type=Path,
        metavar="FILE",
        help="inpainting: --image is painted anew where this picture is white, and kept to the bit elsewhere",
    )
    add("-n", "--images-per-prompt", type=COUNT, default=1, metavar="N")
    add("--batch-size", type=COUNT, default=1, metavar="N", help="images at once (default 1)")
    add("--sheet", action="store_true", help="one contact sheet instead of numbered files")
    add("--json", action="store_true", help="print what was written as JSON")
    return made


def add_model_options(made: argparse.ArgumentParser) -> None:
    """Add what `serve` takes as well."""
    add = made.add_argument
    add(
        "--model",
        type=Path,
        metavar="PATH",
        help="a run directory of l2p-transfer, a model directory, or a published single file; default: the"
        " miniature that ships",
    )
    add(
        "--components",
        type=Path,
        metavar="DIR",
        help="for a single file: the pipeline directory with its text encoder, such as Z-Image-Turbo",
    )
    add(
        "--lora",
        type=adapter,
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="an adapter on top of the model; may be given several times",
    )
    add("--device", help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add("--cpu-offload", action="store_true", help="text encoder and transformer on the GPU by turns")
    add("--tile", type=SIDE, metavar="PX", help="the Detailer Head in tiles: the same image, less memory")

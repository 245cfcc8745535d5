"""Options that all metrics share, and numbers that are checked as they are read."""

import argparse
from pathlib import Path


def add_common(parser: argparse.ArgumentParser) -> None:
    """What is scored and where the results go; how a model paints."""
    add = parser.add_argument
    add(
        "--images",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a folder to score; several are compared",
    )
    add(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a run of l2p-transfer or a diffusers directory to paint with; several are compared",
    )
    add("-o", "--output", type=Path, default=Path("evaluation"), metavar="DIR", help="default: evaluation/")
    add("--json", action="store_true", help="print results.json instead of the table")
    _add_painting(parser.add_argument_group("painting (with --model)"))


def _add_painting(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--images-per-prompt",
        type=positive,
        metavar="N",
        help="default 1; GenEval and DPG use 4. GenEval wants as many of a folder, where it is given",
    )
    add("--seed", type=int, default=42, help="of the first image (default 42)")
    add("--height", type=positive, metavar="PX", help="default: the model's own, as for the following")
    add("--width", type=positive, metavar="PX")
    add("--steps", type=positive)
    add("--guidance", type=float)
    add("--shift", type=float, help="noise shift, of pixel-space models")
    add("--max-sequence-length", type=positive, metavar="TOKENS")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--cpu-offload", action="store_true", help="text encoder, transformer, VAE on the GPU by turns")
    add("--batch-size", type=positive, default=8, metavar="N")
    add("--workers", type=not_negative, metavar="N", help="default one per GPU or core; 0: this process")
    add("--executor", choices=("processes", "ray"), default="processes", help="ray: also on a cluster")


def positive(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def not_negative(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} must be at least {least}")
    return value

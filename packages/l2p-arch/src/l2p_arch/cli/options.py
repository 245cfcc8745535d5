"""The parser of `l2p-arch`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from l2p_arch.cli.printing import print_result, printable


def parser() -> argparse.ArgumentParser:
    """Return the parser of `l2p-arch`; `command` in its result names the command."""
    whole = _Parser(
        prog="l2p-arch", description="Checkpoints of pixel-space diffusion transformers (L2P, sec. 3.3, 3.4)."
    )
    whole.add_argument("--version", action=_Version, help="print the version and end")
    commands = whole.add_subparsers(required=True, metavar="command", dest="command")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object")
        return sub

    def writes(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--overwrite", action="store_true", help="replace what is there")
        return sub

    _conversion(writes(command("convert", "a latent diffusers pipeline -> the start of a pixel-space model")))

    sub = writes(command("upscale", "a pixel-space model -> the start of one with a larger patch"))
    sub.add_argument("model", type=Path, help="model directory")
    sub.add_argument("out", type=Path, help="directory to create")
    _new_ends(sub, patch_size=64)

    sub = command("identify", "say what a file or directory is, by its content; any answer is a success")
    sub.add_argument("path", type=Path)

    sub = writes(command("import", "a published single file -> a model directory, bit by bit"))
    sub.add_argument("file", type=Path, help="safetensors file")
    sub.add_argument("pipeline", type=Path, help="Z-Image directory: text encoder, tokenizer and scheduler")
    sub.add_argument("out", type=Path, help="directory to create")

    sub = writes(command("export", "a model directory -> a single file in the published layout, bit by bit"))
    sub.add_argument("model", type=Path, help="model directory")
    sub.add_argument("file", type=Path, help="safetensors or GGUF file to create")
    sub.add_argument(
        "--layout",
        choices=["published", "comfyui", "gguf"],
        default="published",
        help="names of the tensors: the published ones, or ComfyUI's (packed projections); gguf: a GGUF file",
    )
    sub.add_argument(
        "--kind",
        choices=["keep", "f32", "bf16", "f16", "q8_0"],
        help="of a GGUF file: as the weights are (the default), cast, or the blocks' matrices in 8 bits",
    )

    sub = writes(command("quantise", "a model directory -> a smaller one, its blocks' layers in 8 bits"))
    sub.add_argument("model", type=Path, help="model directory")
    sub.add_argument("out", type=Path, help="directory to create")
    sub.add_argument("--kind", choices=["int8", "fp8"], default="int8", help="default: int8")

    sub = writes(command("merge", "a base and a trained-delta file -> a model directory"))
    sub.add_argument("base", type=Path, help="the model directory that training started from")
    sub.add_argument("delta", type=Path, help="safetensors file")
    sub.add_argument("out", type=Path, help="directory to create")
    return whole


def _conversion(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", type=Path, help="diffusers directory")
    sub.add_argument("out", type=Path, help="directory to create")
    _new_ends(sub, patch_size=16)
    sub.add_argument(
        "--recipe",
        default="paper",
        choices=["paper", "aligned"],
        help="aligned: keep the source's last layer and predict the image; needs --images and the VAE",
    )
    sub.add_argument(
        "--prediction",
        default="auto",
        help="what the head answers: velocity, x_0 (the image), or auto, which is the recipe's own",
    )
    sub.add_argument(
        "--decoder",
        default="auto",
        help="aligned only: low-rank, least-squares, neighbours, filters or closed-form (default auto)",
    )
    sub.add_argument(
        "--reading",
        default="auto",
        help="aligned only: what the trunk reads of pixels, subspace or wiener (default auto)",
    )
    sub.add_argument(
        "--polish",
        type=float,
        nargs="*",
        metavar="SIGMA",
        help="aligned only: noise levels at which a finished image is denoised once more (default 0.2 0.02); "
        "none: it stays as sampled. Write it after the paths",
    )
    sub.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the source's")
    sub.add_argument(
        "--images", type=Path, metavar="FOLDER", help="pictures that the start of the new ends is fitted to"
    )
    sub.add_argument("--image-count", type=int, default=32, help="how many of them, at most")
    sub.add_argument("--image-size", type=int, default=512, help="px; their middle square is scaled to it")
    sub.add_argument(
        "--disable-mmap",
        action="store_true",
        help="load by plain reads instead of memory maps, for network and FUSE mounts (L2P_DISABLE_MMAP=1)",
    )


class _Parser(argparse.ArgumentParser):
    """A parser that says a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        shown = printable(message)[:500]
        self.exit(2, f"error: {shown}; {self.prog} --help says more\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help that cannot be written is an error, as every result is; argparse itself is silent about it."""
        if message and file is sys.stdout:
            if code := print_result(message.removesuffix("\n")):
                raise SystemExit(code)
        else:
            super()._print_message(message, file)


class _Version(argparse.Action):
    """--version, which looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"l2p-arch {version('l2p-arch')}")
        parser.exit()


def _new_ends(sub: argparse.ArgumentParser, *, patch_size: int) -> None:
    sub.add_argument("--patch-size", type=int, default=patch_size, help=f"px (default {patch_size})")
    sub.add_argument(
        "--head-channels",
        type=int,
        nargs="*",
        metavar="WIDTH",
        help="of the Detailer Head, finest first (default: what goes with the patch); none: a linear head. "
        "Write it after the paths",
    )
    sub.add_argument(
        "--head-bottleneck", type=int, metavar="WIDTH", help="after the fusion (512 in the public 10K head)"
    )
    sub.add_argument(
        "--head-decoder-floor",
        type=int,
        default=0,
        metavar="WIDTH",
        help="least width of a decoder level (16 in the public 8K and 10K heads)",
    )
    sub.add_argument("--initialisation", default="auto", help='of what is new; names joined with "+"')
    sub.add_argument("--seed", type=int, default=0, help="of what is new")

"""`l2p-arch`: checkpoints on the command line. Results go to stdout, the rest to stderr."""

import argparse
import contextlib
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from l2p_arch.errors import ArchError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 ok, 1 a bug, 2 usage or input, 130 interrupted, 143 ended."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path may hold what the terminal's encoding does not
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        with _ended_by_sigterm():
            result = _RUN[options.command](options)
    except ArchError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, _Ended) as end:
        print("interrupted; nothing was written", file=sys.stderr)
        return 143 if isinstance(end, _Ended) else 130
    return _print(json.dumps(result) if options.json else result["summary"])


def _printable(text: str) -> str:
    """Return a text in one line, without characters that steer a terminal: what was handed in may hold
    some.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class _Ended(BaseException):
    """SIGTERM came; what is half written is removed on the way out, as after Ctrl-C."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise _Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(text: str) -> int:
    """Print the result, and say so where it cannot be written; a reader who has seen enough is no mistake."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Python flushes once more when it ends, and would complain in a traceback.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"error: cannot write the result: {error.strerror}; free some space", file=sys.stderr)
            return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that says a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        shown = _printable(message)[:500]
        self.exit(2, f"error: {shown}; {self.prog} --help says more\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help that cannot be written is an error, as every result is; argparse itself is silent about it."""
        if message and file is sys.stdout:
            if code := _print(message.removesuffix("\n")):
                raise SystemExit(code)
        else:
            super()._print_message(message, file)


def command_line() -> int:
    """Run `main` as the whole of a process: Python's last act would be to look for garbage among all that
    torch and diffusers consist of, for 1.5 s."""
    try:
        code = main()
    except KeyboardInterrupt:  # before main could begin
        print("interrupted; nothing was written", file=sys.stderr)
        code = 130
    gc.freeze()
    return code


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

    sub = writes(command("convert", "a latent diffusers pipeline -> the start of a pixel-space model"))
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


def _convert(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_arch.surgery.convert import convert

    images = options.images and _pictures(options.images, options.image_count, options.image_size)
    report = convert(
        options.source,
        options.out,
        patch_size=options.patch_size,
        head_channels=options.head_channels,
        head_bottleneck=options.head_bottleneck,
        head_decoder_floor=options.head_decoder_floor,
        seed=options.seed,
        dtype=options.dtype,
        recipe=options.recipe,
        initialisation=options.initialisation,
        prediction=options.prediction,
        decoder=options.decoder,
        reading=options.reading,
        calibration_images=images,
        overwrite=options.overwrite,
        disable_mmap=options.disable_mmap or None,
    )
    return {"summary": report.summary(), **asdict(report)}


def _upscale(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_arch.surgery.upscale import upscale

    report = upscale(
        options.model,
        options.out,
        patch_size=options.patch_size,
        head_channels=options.head_channels,
        head_bottleneck=options.head_bottleneck,
        head_decoder_floor=options.head_decoder_floor,
        initialisation=options.initialisation,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    return {"summary": report.summary(), **asdict(report)}


def _identify(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_arch.files.recognition import identify

    if not options.path.exists():
        raise ArchError(f"there is no {options.path}; give a file or a directory")
    return {"summary": identify(options.path)}


def _import(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_arch.public_models import import_public

    layout = import_public(options.file, options.pipeline, options.out, overwrite=options.overwrite)
    return {"summary": f"{options.out}: from the published {layout} layout", "layout": layout}


def _export(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_arch.public_models import export_public

    if options.layout == "gguf":
        return _export_gguf(options)
    if options.kind is not None:
        raise ArchError("--kind is of GGUF files; add --layout gguf, or leave it out")
    comfyui = options.layout == "comfyui"
    layout = export_public(options.model, options.file, comfyui=comfyui, overwrite=options.overwrite)
    names = ", by ComfyUI's names" if comfyui else ""
    return {"summary": f"{options.file}: in the published {layout} layout{names}", "layout": layout}


def _export_gguf(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_arch.gguf_models import export_gguf

    kind = options.kind or "keep"
    made = export_gguf(options.model, options.file, kind=kind, overwrite=options.overwrite)
    shares = f", {made['quantised']} of {made['tensors']} tensors in q8_0" if kind == "q8_0" else ""
    notes = "".join(f"; {note}" for note in made["notes"])
    return {
        "summary": f"{options.file}: GGUF of the published {made['layout']} layout{shares}{notes}",
        **made,
    }


def _quantise(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_arch.quantised_models import quantise

    sizes = quantise(options.model, options.out, kind=options.kind, overwrite=options.overwrite)
    shares = f"{sizes['before'] / 1e6:.1f} -> {sizes['after'] / 1e6:.1f} MB of weights"
    return {"summary": f"{options.out}: {options.kind}, {shares}", **sizes}


def _merge(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_arch.files.delta import merge_delta

    merge_delta(options.base, options.delta, options.out, overwrite=options.overwrite)
    return {"summary": f"{options.out}: {options.base.name} with {options.delta.name}"}


def _pictures(folder: Path, count: int, size: int) -> Any:
    """Return the middle squares of a folder's first pictures by name, (N, 3, size, size) in [-1, 1]."""
    import numpy as np
    import torch
    from PIL import ImageOps

    from l2p_arch.surgery.pictures import read_picture

    if count < 1 or size < 1:
        raise ArchError(f"--image-count {count} and --image-size {size} must be at least 1")
    paths = sorted(folder.glob("*")) if folder.is_dir() else []
    paths = [path for path in paths if path.suffix.lower() in _IMAGE_SUFFIXES][:count]
    if not paths:
        raise ArchError(f"{folder} holds no pictures ({', '.join(_IMAGE_SUFFIXES)}) to fit the new ends to")
    squares = [np.asarray(ImageOps.fit(read_picture(path), (size, size))) for path in paths]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1


_RUN = {
    "convert": _convert,
    "upscale": _upscale,
    "identify": _identify,
    "import": _import,
    "export": _export,
    "merge": _merge,
    "quantise": _quantise,
}

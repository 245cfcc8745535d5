"""`l2p-generate --model RUN "a prompt" -o out.png`: text to image with an L2P model; `l2p-generate serve`:
the same as a web page.

Exit codes: 0 done, 1 a bug, 2 usage or input, 130 interrupted.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["serve"]:
        from l2p_generate.serve.cli import parse, run

        return _guarded(lambda: run(parse(given[1:])))
    options = _parser().parse_args(given)
    return _guarded(lambda: _run(options))


def _guarded(work: Callable[[], int]) -> int:
    """Turns what a user can put right into one line and exit code 2."""
    from l2p_arch.errors import ArchError

    from l2p_generate.errors import GenerateError

    try:
        return work()
    except (ArchError, GenerateError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE_ERROR
    except PermissionError as error:
        where, why = error.filename, error.strerror
        print(f"error: cannot open {where}: {why}; its owner can allow it, with chmod", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from l2p_generate.errors import GenerateError
    from l2p_generate.model import find_model, sampling_defaults, weights_fingerprint
    from l2p_generate.request import is_unchanged, make_recipes

    if options.output.suffix.lower() != ".png":
        raise GenerateError(f"-o {options.output} must end in .png, the format that keeps the parameters")
    model = find_model(options.model, options.components, on_import=announce_import)
    recipes = make_recipes(options, sampling_defaults(model))
    for recipe in recipes:
        check_size(model, recipe.sampling.height, recipe.sampling.width)
    again = options.from_image is not None and is_unchanged(options, recipes)
    if again and recipes[0].weights != weights_fingerprint(model):
        raise GenerateError(
            f"{options.from_image} was made by other weights ({recipes[0].model}, {recipes[0].weights}) than"
            f" {options.model} has; give the model that made it, or another --seed for a new image"
        )
    from l2p_generate.files import save, save_sheet
    from l2p_generate.painting import load_painter, paint, quiet_libraries

    quiet_libraries()
    dtype = recipes[0].dtype if again and options.dtype == "auto" else options.dtype
    memory = {"cpu_offload": options.cpu_offload, "tile": options.tile}
    painter = load_painter(model, name=_name(options.model), device=options.device, dtype=dtype, **memory)
    with Progress() as progress:
        pictures = paint(painter, recipes, batch_size=options.batch_size, on_step=progress)
    if options.sheet:
        columns = options.images_per_prompt if options.images_per_prompt > 1 else 4
        paths = [save_sheet(pictures, options.output, columns=columns)]
    else:
        paths = save(pictures, options.output)
    if again:
        _compare(pictures[0], options.from_image, recipes[0], painter.device)
    if options.json:
        rows = [{"prompt": one.recipe.prompt, "seed": one.recipe.seed} for one in pictures]
        files = [str(path) for path in paths]
        print(json.dumps({"files": files, "images": rows, "sampling": asdict(recipes[0].sampling)}, indent=1))
    else:
        for path in paths:
            print(path)
    return 0


def _compare(picture: Any, original: Path, recipe: Any, device: str) -> None:
    """Says on stderr whether the image came out the same, and where not, what may be why."""
    from l2p_generate.files import difference
    from l2p_generate.recipe import provenance

    pixels, most = difference(picture, original)
    if pixels == 0:
        print(f"identical to {original}", file=sys.stderr)
        return
    changed = provenance(recipe, device=device.partition(":")[0])
    why = ", ".join(f"{name} {there} then, {here} now" for name, (there, here) in changed.items())
    print(
        f"differs from {original} in {pixels} pixels, by {most} of 255 at most"
        f" ({why or 'the same software; another kind of processor?'})",
        file=sys.stderr,
    )


def check_size(model: Path, height: int, width: int) -> None:
    """Refuses a size before the weights are loaded."""
    from l2p_arch.patchify import check_size

    config = json.loads((model / "transformer" / "config.json").read_text(encoding="utf-8"))
    check_size(height, width, config["patch_size"])


def announce_import(out: Path) -> None:
    """A single file is copied once; that takes disk and time, so say it."""
    print(f"importing the single file, once, to {out}", file=sys.stderr)


def _name(model: Path) -> str:
    """What a user calls the model: its directory's or file's name."""
    return model.resolve().name if model.name in ("", ".", "..") else model.name


class Progress:
    """A bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.started = self.said = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.terminal:
            print(file=sys.stderr)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        left = (now - self.started) / done * (total - done)
        if self.terminal:
            filled = 28 * done // total
            bar = f"{'█' * filled}{'░' * (28 - filled)}"
            print(f"\r{bar} step {done}/{total}, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
        elif now - self.said >= 10:
            self.said = now
            print(f"step {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `serve` takes as well."""
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        metavar="PATH",
        help="a run directory of l2p-transfer, a model directory, or a published single file",
    )
    add(
        "--components",
        type=Path,
        metavar="DIR",
        help="for a single file: the pipeline directory with its text encoder, such as Z-Image-Turbo",
    )
    add("--device", help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add("--cpu-offload", action="store_true", help="text encoder and transformer on the GPU by turns")
    add("--tile", type=positive, metavar="PX", help="the Detailer Head in tiles: the same image, less memory")


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        """Without the usage."""
        self.exit(USAGE_ERROR, f"error: {message}; {self.prog} --help says more\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="l2p-generate",
        description="Text to image with an L2P model. `l2p-generate serve` opens a web page instead.",
    )
    add, own = parser.add_argument, "; default: the model's own"
    add("prompt", nargs="*", metavar="PROMPT", help="what to paint; several prompts, several images")
    add_model_options(parser)
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='one prompt a line, or JSON lines with "prompt" and "seed"; - is stdin',
    )
    add("--from-image", type=Path, metavar="FILE.png", help="paint this image again; other flags change it")
    add("-o", "--output", type=Path, default=Path("out.png"), metavar="FILE.png")
    add("--height", type=int, metavar="PX", help="a multiple of the patch size" + own)
    add("--width", type=int, metavar="PX", help="a multiple of the patch size" + own)
    add("--steps", type=positive, help="sampling steps" + own)
    add("--guidance", type=float, help="guidance scale, 1 or less is off" + own)
    add("--shift", type=float, help="noise shift" + own)
    add("--distilled-guidance", type=float, metavar="S", help="that FLUX [dev] models embed" + own)
    add("--seed", type=int, help="of the first image of each prompt (default 42)")
    add("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    add("--image", type=Path, metavar="FILE", help="image-to-image: start from this picture")
    add(
        "--strength",
        type=float,
        metavar="S",
        help="of image-to-image: 0 keeps the picture, 1 forgets it (default 0.6)",
    )
    add("-n", "--images-per-prompt", type=positive, default=1, metavar="N")
    add("--batch-size", type=positive, default=1, metavar="N", help="images at once (default 1)")
    add("--sheet", action="store_true", help="one contact sheet instead of numbered files")
    add("--json", action="store_true", help="print what was written as JSON")
    return parser


def positive(text: str) -> int:
    """A count."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())

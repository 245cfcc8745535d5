"""`l2p-generate --model RUN "a prompt" -o out.png`: text to image with an L2P model.

Exit codes: 0 done, 1 a bug, 2 usage or input, 130 interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    from l2p_arch.errors import ArchError

    from l2p_generate.errors import GenerateError

    try:
        return _run(options)
    except (ArchError, GenerateError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted; no image was written", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from l2p_generate.errors import GenerateError
    from l2p_generate.model import find_model, sampling_defaults

    if options.output.suffix.lower() != ".png":
        raise GenerateError(f"-o {options.output} must end in .png, the format that keeps the parameters")
    for prompt in options.prompts:
        if not prompt.strip():
            raise GenerateError("a prompt is empty; say what to paint")
    model = find_model(options.model)
    given = {
        "height": options.height,
        "width": options.width,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "noise_shift": options.shift,
    }
    sampling = replace(sampling_defaults(model), **{k: v for k, v in given.items() if v is not None})
    _check_size(model, sampling.height, sampling.width)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from l2p_generate.painting import load_pipeline, paint, save, save_sheet

    _quiet_loading()
    pipeline = load_pipeline(model, device=options.device, dtype=options.dtype)
    pictures = paint(
        pipeline,
        options.prompts,
        sampling,
        model=options.model.name,
        seed=options.seed,
        images_per_prompt=options.images_per_prompt,
        negative_prompt=options.negative_prompt,
        batch_size=options.batch_size,
        on_step=_show_progress if sys.stderr.isatty() else None,
    )
    if options.sheet:
        columns = options.images_per_prompt if options.images_per_prompt > 1 else 4
        paths = [save_sheet(pictures, options.output, columns=columns)]
    else:
        paths = save(pictures, options.output)
    if options.json:
        rows = [{"prompt": picture.prompt, "seed": picture.seed} for picture in pictures]
        files = [str(path) for path in paths]
        print(json.dumps({"files": files, "images": rows, "sampling": asdict(sampling)}, indent=1))
    else:
        for path in paths:
            print(path)
    return 0


def _check_size(model: Path, height: int, width: int) -> None:
    """Refuses a size before the weights are loaded."""
    from l2p_arch.patchify import check_size

    config = json.loads((model / "transformer" / "config.json").read_text(encoding="utf-8"))
    check_size(height, width, config["patch_size"])


def _quiet_loading() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()


def _show_progress(done: int, total: int) -> None:
    """A bar on the terminal."""
    filled = 28 * done // total
    end = "\n" if done == total else ""
    print(f"\r{'█' * filled}{'░' * (28 - filled)} {done}/{total}", end=end, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="l2p-generate", description="Text to image with an L2P model.")
    add, own = parser.add_argument, "; default: the model's own"
    add("prompts", nargs="+", metavar="PROMPT", help="what to paint; several prompts, several images")
    add(
        "--model",
        type=Path,
        required=True,
        metavar="DIR",
        help="a run directory of l2p-transfer, or a model directory",
    )
    add("-o", "--output", type=Path, default=Path("out.png"), metavar="FILE.png")
    add("--height", type=int, metavar="PX", help="a multiple of the patch size" + own)
    add("--width", type=int, metavar="PX", help="a multiple of the patch size" + own)
    add("--steps", type=int, help="sampling steps" + own)
    add("--guidance", type=float, help="guidance scale, 1 or less is off" + own)
    add("--shift", type=float, help="noise shift" + own)
    add("--seed", type=int, default=42, help="of the first image of each prompt (default 42)")
    add("--negative-prompt", default="", metavar="TEXT", help="what guidance leads away from")
    add("-n", "--images-per-prompt", type=_positive, default=1, metavar="N")
    add("--batch-size", type=_positive, default=4, metavar="N", help="images at once (default 4)")
    add("--sheet", action="store_true", help="one contact sheet instead of numbered files")
    add("--device", help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add("--json", action="store_true", help="print what was written as JSON")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())

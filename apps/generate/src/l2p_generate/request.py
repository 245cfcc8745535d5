"""What a command line asks for, as recipes."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from l2p_generate.errors import GenerateError
from l2p_generate.model import Sampling
from l2p_generate.recipe import Recipe, file_sha256, read_recipe

SAMPLING_FLAGS = {
    "height": "height",
    "width": "width",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "shift": "noise_shift",
    "distilled_guidance": "distilled_guidance_scale",
}
"""Flag -> field of `Sampling`."""


def read_prompts(options: argparse.Namespace) -> list[tuple[str, int | None]]:
    """(prompt, its own seed or None) from the arguments, a file or stdin.

    Lines are prompts; a line that starts with "{" is JSON with "prompt" and, if it likes, "seed". Empty lines
    are skipped.
    """
    prompts: list[tuple[str, int | None]] = [(prompt, None) for prompt in options.prompt]
    if options.prompts is not None:
        name = "stdin" if str(options.prompts) == "-" else str(options.prompts)
        try:
            text = sys.stdin.read() if name == "stdin" else options.prompts.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise GenerateError(
                f"--prompts {name} does not exist; give a file with one prompt a line, or - for stdin"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise GenerateError(f"cannot read --prompts {name}: {error}") from None
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
        prompts += [_read_line(line, f"{name}, line {number}") for number, line in lines if line]
        if not prompts:
            raise GenerateError(f"--prompts {name} holds no prompt; write one a line")
    if any(not prompt.strip() for prompt, _ in prompts):
        raise GenerateError("a prompt is empty; say what to paint")
    return prompts


def _read_line(line: str, where: str) -> tuple[str, int | None]:
    if not line.startswith("{"):
        return line, None
    try:
        row = json.loads(line)
    except ValueError as error:
        raise GenerateError(f"{where} is no valid JSON ({error})") from None
    seed = row.get("seed")
    if not isinstance(row.get("prompt"), str) or not (seed is None or isinstance(seed, int)):
        raise GenerateError(f'{where} needs a text "prompt", and "seed" must be a whole number')
    return row["prompt"], seed


def make_recipes(options: argparse.Namespace, defaults: Sampling) -> list[Recipe]:
    """The images to paint: every prompt with `options.images_per_prompt` consecutive seeds."""
    prompts = read_prompts(options)
    changes = {field: getattr(options, flag) for flag, field in SAMPLING_FLAGS.items()}
    changes = {field: value for field, value in changes.items() if value is not None}
    if options.from_image is not None:
        return _again(options, prompts, changes)
    if not prompts:
        raise GenerateError("nothing to paint: give a prompt, --prompts FILE or --from-image FILE.png")
    template = Recipe(
        prompt="",
        seed=0,
        sampling=replace(defaults, **changes),
        negative_prompt=options.negative_prompt or "",
        **_start(options.image, 0.6 if options.strength is None else options.strength),
    )
    if options.strength is not None and options.image is None:
        raise GenerateError("--strength is for image-to-image; add --image FILE, or leave it out")
    first = 42 if options.seed is None else options.seed
    return [
        replace(template, prompt=prompt, seed=(first if own is None else own) + number)
        for prompt, own in prompts
        for number in range(options.images_per_prompt)
    ]


def _again(
    options: argparse.Namespace, prompts: Sequence[tuple[str, int | None]], changes: dict[str, Any]
) -> list[Recipe]:
    """The recipe of a PNG file, with what the command line changes; unchanged, in its own batch."""
    recipe = read_recipe(options.from_image)
    if options.image is not None:
        start = _start(options.image, recipe.strength or 0.6)
        if recipe.image_sha256 == start["image_sha256"]:  # the same picture at another place: no change
            recipe = replace(recipe, image=start["image"])
        else:
            recipe = replace(recipe, **start, batch=())
    if options.strength is not None:
        recipe = replace(recipe, strength=options.strength, batch=())
    if options.negative_prompt is not None:
        recipe = replace(recipe, negative_prompt=options.negative_prompt, batch=())
    if changes:
        recipe = replace(recipe, sampling=replace(recipe.sampling, **changes), batch=())
    if prompts or options.seed is not None or options.images_per_prompt > 1:
        seed = recipe.seed if options.seed is None else options.seed
        return [
            replace(recipe, prompt=prompt, seed=(seed if own is None else own) + number, batch=())
            for prompt, own in (prompts or [(recipe.prompt, None)])
            for number in range(options.images_per_prompt)
        ]
    return [recipe]


def is_unchanged(options: argparse.Namespace, recipes: Sequence[Recipe]) -> bool:
    """Whether --from-image asks for the very same image."""
    return len(recipes) == 1 and recipes[0] == replace(
        read_recipe(options.from_image), image=recipes[0].image
    )


def _start(image: Path | None, strength: float) -> dict[str, Any]:
    """The fields of a recipe that image-to-image sets."""
    if image is None:
        return {}
    if not 0 <= strength <= 1:
        raise GenerateError(f"--strength {strength} is not between 0 (keep the picture) and 1 (forget it)")
    if not image.is_file():
        raise GenerateError(f"--image {image} does not exist; give the picture to start from")
    return {"image": str(image), "image_sha256": file_sha256(image), "strength": strength}

"""What a command line asks for, as recipes."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from l2p_arch.sampling.settings import Sampling
from l2p_run.pictures import open_picture
from l2p_run.places import is_file, parse_json, read_text
from l2p_serve.errors import ServeError
from l2p_serve.recipe import (
    Adapter,
    Recipe,
    check_seed,
    read_adapter,
    read_recipe,
    sha256_of,
    start_from,
)
from l2p_serve.text import check_text

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
    """Return (prompt, its own seed or None) from the arguments, a file or stdin.

    Lines are prompts; a line that starts with "{" is JSON with "prompt" and, if it likes, "seed". Empty lines
    are skipped.
    """
    prompts: list[tuple[str, int | None]] = [(prompt, None) for prompt in options.prompt]
    if options.prompts is not None:
        name = "stdin" if str(options.prompts) == "-" else str(options.prompts)
        lines = _lines(options.prompts, name)
        prompts += [_read_line(line, f"{name}, line {number}") for number, line in lines if line]
        if len(prompts) == len(options.prompt):
            raise ServeError(f"--prompts {name} holds no prompt; write one a line")
    for prompt, _ in prompts:
        if not prompt.strip():
            raise ServeError("a prompt is empty; say what to paint")
        check_text(prompt, "the prompt")
    return prompts


def _lines(path: Path, name: str) -> list[tuple[int, str]]:
    """Line numbers from 1, and stripped lines."""
    if name == "stdin":
        stream = getattr(sys.stdin, "buffer", sys.stdin)
        given = stream.read()
        try:
            text = given.decode("utf-8-sig") if isinstance(given, bytes) else given
        except UnicodeDecodeError as error:
            raise ServeError(
                f"stdin is no text in UTF-8 (byte {error.start} is {given[error.start]:#04x}); write it so"
            ) from None
    elif not is_file(path):
        what = "is no file" if path.exists() else "does not exist"
        raise ServeError(f"--prompts {name} {what}; give a file with one prompt a line, or - for stdin")
    else:
        text = read_text(path)
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]


def _read_line(line: str, where: str) -> tuple[str, int | None]:
    if not line.startswith("{"):
        return line, None
    row = parse_json(line, where)
    seed = row.get("seed")
    if not isinstance(row.get("prompt"), str):
        raise ServeError(f'{where} needs a text "prompt", and "seed" must be a whole number')
    return row["prompt"], None if seed is None else check_seed(seed, f"{where}: seed")


def make_recipes(options: argparse.Namespace, defaults: Sampling) -> list[Recipe]:
    """Return the images to paint: every prompt with `options.images_per_prompt` consecutive seeds."""
    prompts = read_prompts(options)
    check_text(options.negative_prompt or "", "the negative prompt")
    changes = {field: getattr(options, flag) for flag, field in SAMPLING_FLAGS.items()}
    changes = {field: value for field, value in changes.items() if value is not None}
    adapters = tuple(read_adapter(file, weight) for file, weight in options.lora)
    if options.from_image is not None:
        return _again(options, prompts, changes, adapters)
    if not prompts:
        raise ServeError("nothing to paint: give a prompt, --prompts FILE or --from-image FILE.png")
    for flag in ("strength", "mask"):
        if getattr(options, flag) is not None and options.image is None:
            kind = "image-to-image" if flag == "strength" else "inpainting"
            raise ServeError(f"--{flag} is for {kind}; add --image FILE, or leave it out")
    template = Recipe(
        prompt="",
        seed=0,
        sampling=replace(defaults, **changes),
        negative_prompt=options.negative_prompt or "",
        adapters=adapters,
        **start_from(options.image, options.mask, options.strength),
    )
    if options.mask is not None and not {"height", "width"} & changes.keys():
        template = replace(template, sampling=_sized(template, options.image))
    first = 42 if options.seed is None else options.seed
    return _seeded(template, [(text, first if own is None else own) for text, own in prompts], options)


def _seeded(recipe: Recipe, prompts: list[tuple[str, int]], options: argparse.Namespace) -> list[Recipe]:
    """Return `options.images_per_prompt` recipes of each (prompt, first seed)."""
    return [
        replace(recipe, prompt=prompt, seed=check_seed(seed + number, "the last image's seed"))
        for prompt, seed in prompts
        for number in range(options.images_per_prompt)
    ]


def _sized(recipe: Recipe, image: Path) -> Sampling:
    """Return the picture's own size for what is painted into it, so that the rest of it stays as it is."""
    width, height = open_picture(image).size
    return replace(recipe.sampling, height=height, width=width)


def _again(
    options: argparse.Namespace,
    prompts: Sequence[tuple[str, int | None]],
    changes: dict[str, Any],
    adapters: tuple[Adapter, ...],
) -> list[Recipe]:
    """Return the recipe of a PNG file, with what the command line changes; unchanged, in its own batch."""
    recipe = read_recipe(options.from_image)
    for name, path in (("image", options.image), ("mask", options.mask)):
        if path is None:
            continue
        given: dict[str, Any] = {name: str(path), f"{name}_sha256": sha256_of(path, name)}
        # The same picture at another place is no change.
        same = getattr(recipe, f"{name}_sha256") == given[f"{name}_sha256"]
        recipe = replace(recipe, **given, batch=recipe.batch if same else ())
    if recipe.image is not None and recipe.strength is None and recipe.mask is None:
        recipe = replace(recipe, strength=0.6)
    if recipe.mask is not None and recipe.image is None:
        raise ServeError("--mask is for inpainting; add --image FILE, or leave it out")
    if adapters:
        same = [(one.sha256, one.weight) for one in adapters] == [
            (one.sha256, one.weight) for one in recipe.adapters
        ]
        recipe = replace(recipe, adapters=adapters, batch=recipe.batch if same else ())
    if options.strength is not None:
        recipe = replace(recipe, strength=options.strength, batch=())
    if options.negative_prompt is not None:
        recipe = replace(recipe, negative_prompt=options.negative_prompt, batch=())
    if changes:
        recipe = replace(recipe, sampling=replace(recipe.sampling, **changes), batch=())
    if prompts or options.seed is not None or options.images_per_prompt > 1:
        seed = recipe.seed if options.seed is None else options.seed
        texts = [(text, seed if own is None else own) for text, own in prompts] or [(recipe.prompt, seed)]
        return _seeded(replace(recipe, batch=(), place=0), texts, options)
    return [recipe if recipe.batch else replace(recipe, place=0)]


def is_unchanged(options: argparse.Namespace, recipes: Sequence[Recipe]) -> bool:
    """Return whether --from-image asks for the very same image; its files may lie elsewhere now."""
    if len(recipes) != 1:
        return False
    made = recipes[0]
    names: dict[str, Any] = {"image": made.image, "mask": made.mask}
    recorded = read_recipe(options.from_image)
    files = [(one.sha256, one.weight) for one in recorded.adapters]
    if files == [(one.sha256, one.weight) for one in made.adapters]:
        names["adapters"] = made.adapters
    return made == replace(recorded, **names)

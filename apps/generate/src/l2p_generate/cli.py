"""`l2p-generate "a prompt" --model RUN -o out.png`: text to image with an L2P model; `l2p-generate serve`:
the same as a web page or an API.

Exit codes: 0 done, 1 a bug, 2 usage or input, 130 and 143 interrupted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2p_run.command import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    from l2p_arch.errors import ArchError

    given = list(sys.argv[1:] if arguments is None else arguments)
    ends = "start it again" if given[:1] == ["serve"] else "what was written is whole"
    return run_command(lambda: _run(given), interrupted=ends, user_errors=(ArchError,))


def _run(given: list[str]) -> int:
    if given[:1] == ["serve"]:
        from l2p_generate.serve import parse, run

        return run(parse(given[1:]))
    return _paint(_parser().parse_args(given))


def _parser() -> Any:
    from l2p_generate.options import parser

    return parser()


def _paint(options: Any) -> int:
    from l2p_arch.sampling.settings import sampling_defaults
    from l2p_run.command import out
    from l2p_run.progress import Counter, say
    from l2p_serve.errors import ServeError
    from l2p_serve.files import check_output, save
    from l2p_serve.fingerprint import is_made_by
    from l2p_serve.sheet import save_sheet

    from l2p_generate.model import announce_import, choose_model
    from l2p_generate.request import SAMPLING_FLAGS, is_unchanged, make_recipes

    model = choose_model(options.model, options.components, on_import=announce_import)
    recipes = make_recipes(options, sampling_defaults(model.directory))
    flags = {field: f"--{flag.replace('_', '-')}" for flag, field in SAMPLING_FLAGS.items()}
    for recipe in recipes[:1]:  # all have the same
        recipe.sampling.check(flags)
        if recipe.mask is None:  # what is painted into a picture has the picture's size, whatever that is
            model.check_size(recipe.sampling.height, recipe.sampling.width)
    again = options.from_image is not None and is_unchanged(options, recipes)
    if again and not is_made_by(recipes[0].weights, model.directory):
        raise ServeError(
            f"{options.from_image} was made by other weights ({recipes[0].model}, {recipes[0].weights}) than"
            f" {model.name} has; give the model that made it, or another --seed for a new image"
        )
    check_output(options.output)
    from l2p_serve.painting import cut_prompts_said, load_painter, paint_each

    painter = load_painter(
        model,
        device=options.device,
        dtype=recipes[0].dtype if again and options.dtype == "auto" else options.dtype,
        cpu_offload=options.cpu_offload,
        tile=options.tile,
        adapters=recipes[0].adapters,
    )
    with Counter("step", interval=10) as progress, cut_prompts_said(lambda text: say(f"warning: {text}")):
        painted = paint_each(painter, recipes, batch_size=options.batch_size, on_step=progress)
        if options.sheet:
            pictures = list(painted)
            columns = options.images_per_prompt if options.images_per_prompt > 1 else 4
            paths = [save_sheet(pictures, options.output, columns=columns)]
        else:
            written = save(painted, options.output, len(recipes))
            paths, pictures = [path for path, _ in written], [picture for _, picture in written]
    if again:
        _compare(pictures[0], options.from_image, recipes[0], painter.device)
    out(_as_json(pictures, paths) if options.json else "\n".join(map(str, paths)))
    return 0


def _as_json(pictures: Any, paths: list[Path]) -> str:
    import json
    from dataclasses import asdict

    rows = [{"prompt": one.recipe.prompt, "seed": one.recipe.seed} for one in pictures]
    sampling = asdict(pictures[0].recipe.sampling)
    return json.dumps(
        {"files": [str(path) for path in paths], "images": rows, "sampling": sampling}, indent=1
    )


def _compare(picture: Any, original: Path, recipe: Any, device: str) -> None:
    """Say on stderr whether the image came out the same, and where not, what may be why."""
    from l2p_run.progress import say
    from l2p_serve.files import difference
    from l2p_serve.fingerprint import EARLIER_DIGITS
    from l2p_serve.recipe import provenance

    pixels, most = difference(picture, original)
    if pixels == 0:
        say(f"identical to {original}")
        return
    changed = provenance(recipe, device=device.partition(":")[0])
    reasons = [f"{name} {there} then, {here} now" for name, (there, here) in changed.items()]
    if len(recipe.weights) <= EARLIER_DIGITS:
        reasons.append("its version noted a part of the weights only: they may be others")
    why = ", ".join(reasons)
    say(
        f"differs from {original} in {pixels} pixels, by {most} of 255 at most"
        f" ({why or 'the same software; another kind of processor?'})"
    )


if __name__ == "__main__":
    sys.exit(main())

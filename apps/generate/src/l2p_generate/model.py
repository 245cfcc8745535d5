"""Which model paints: the one asked for or the miniature that ships, and the source to paint beside it."""

import argparse
from pathlib import Path
from typing import Any

from l2p_arch.sampling.painter import FoundModel, find_model, find_pixel_model
from l2p_run.progress import say
from l2p_serve.errors import ServeError


def choose_model(given: Path | None, components: Path | None = None, *, on_import: Any = None) -> FoundModel:
    """Return the model asked for; without one the trained pixel miniature that l2p-mini ships.

    Raises:
        ServeError: no model was given and l2p-mini is not installed.
        ArchError: there is no model, or it is damaged.
    """
    if given is not None:
        return find_pixel_model(given, components, on_import=on_import)
    try:
        from l2p_mini import paths
    except ImportError:
        raise ServeError(
            "no --model was given, and the miniature that would paint instead is not installed; give --model"
            " PATH, or install l2p-mini"
        ) from None
    folder = Path(paths.__file__).parent / "pixel_model"
    if not folder.is_dir():
        raise ServeError("no --model was given, and l2p-mini ships no trained one here; give --model PATH")
    return find_pixel_model(folder)


def announce_import(out: Path) -> None:
    """Say that a single file is copied once, which takes disk and time."""
    say(f"importing the single file, once, to {out}")


def load_model(options: argparse.Namespace) -> tuple[FoundModel, Any]:
    """Return the model that the flags name and its painter, with its adapters."""
    from l2p_serve.painting import load_painter
    from l2p_serve.recipe import read_adapter

    model = choose_model(options.model, options.components, on_import=announce_import)
    adapters = [read_adapter(file, weight) for file, weight in options.lora]
    say(f"loading {model.name}")
    painter = load_painter(
        model,
        device=options.device,
        dtype=options.dtype,
        cpu_offload=options.cpu_offload,
        tile=options.tile,
        adapters=adapters,
    )
    return model, painter


def choose_source(model: Path | None, given: Path | None) -> Any:
    """Return the latent model to paint beside `model`: the one asked for, or its own if that is at hand.

    Returns:
        A `Source` or None.
    """
    from l2p_serve.page.source import Source, find_source

    own = find_source(model) if model else _shipped_source()
    if given is None:
        return own
    found = find_model(given)
    if found.pixel:
        raise ServeError(f"--source {given} is an L2P model; give the latent one, or --no-source")
    same = own is not None and own.path.resolve() == found.directory.resolve()
    options: dict[str, Any] = dict(own.options) if own and same else {}
    return Source(path=found.directory, options=options)


def _shipped_source() -> Any:
    from l2p_mini.paths import SOURCE_MODEL
    from l2p_serve.page.source import Source

    options = {"num_inference_steps": 10, "guidance_scale": 2.0, "max_sequence_length": 32}
    return Source(path=SOURCE_MODEL, options=options)

"""The latent model that an L2P model was made from, to paint beside it."""

import inspect
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2p_arch.sampling.painter import load_pipeline, paint_images
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Source:
    """The latent model that an L2P model was made from."""

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)  # of its pipeline's call


def find_source(path: Path) -> Source | None:
    """Return the source of the run that `path` is, or that the model directory `path` lies in; None if it is
    not at hand."""
    run = next(
        (folder for folder in (path, *path.absolute().parents[:2]) if (folder / "config.toml").is_file()),
        None,
    )
    if run is None:
        return None
    try:
        table = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))["source"]
        model = Path(table["model"])
        options = dict(table.get("pipeline_kwargs", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not (model / "model_index.json").is_file():
        return None
    names = ("num_inference_steps", "guidance_scale", "max_sequence_length")
    return Source(path=model, options={name: table[name] for name in names if name in table} | options)


def load_source(
    source: Source, *, device: str, dtype: str, cpu_offload: bool = False
) -> Callable[..., list[Image.Image]]:
    """Return the source's own pipeline as a function of (prompts, seeds, height, width)."""
    pipeline = load_pipeline(source.path, device=device, dtype=dtype, cpu_offload=cpu_offload)
    taken = inspect.signature(pipeline.__call__).parameters
    options = {name: value for name, value in source.options.items() if name in taken}

    def call(prompts: Sequence[str], seeds: Sequence[int], *, height: int, width: int) -> list[Image.Image]:
        return paint_images(pipeline, prompts, seeds, height=height, width=width, **options)

    return call

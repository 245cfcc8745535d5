"""The one door to a model: find it, how it likes to be sampled, load it, paint with it.

A model is a run directory of l2p-transfer, a model directory, a published single file, or a source (any
diffusers text-to-image directory). Nothing here is downloaded, unpickled, or run as code that a model brings.
torch and diffusers are imported when a model is loaded, not before.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError, reason
from l2p_arch.files.components import name_of
from l2p_arch.files.loadable import PIXEL_PIPELINE, check_loadable, check_model_config
from l2p_arch.libraries import quiet_libraries
from l2p_arch.sampling.loading import load_pipeline
from l2p_arch.sampling.settings import SAMPLING_FILE, Sampling, sampling_defaults, shown

__all__ = [
    "SAMPLING_FILE",
    "FoundModel",
    "Paint",
    "Painter",
    "Sampling",
    "check_options",
    "find_model",
    "find_pixel_model",
    "load_pipeline",
    "paint_images",
    "quiet_libraries",
    "sampling_defaults",
]

Paint = Callable[..., list[Any]]
"""(prompts, seeds) -> one PIL image each; an image depends on its own seed and not on its batch."""


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model on this machine."""

    directory: Path  # with model_index.json
    pixel: bool  # an L2P model; else a latent one, a source
    name: str  # what a user calls it

    @property
    def patch_size(self) -> int:
        """Side of a patch, px, of which sides of images are multiples; 1 for a latent model, whose pipeline
        knows itself."""
        if not self.pixel:
            return 1
        return int(check_model_config(self.directory / "transformer").get("patch_size", 16))

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size before the weights are loaded."""
        from l2p_arch.patchify import check_size

        check_size(height, width, self.patch_size)


def find_model(
    path: Path | str,
    components: Path | str | None = None,
    *,
    on_import: Callable[[Path], None] | None = None,
) -> FoundModel:
    """Return the model that `path` is, that the run directory `path` holds, or that the single file `path`
    is turned into; its small files and the headers of its weights are found to be in order.

    Args:
        components: for a single file, the pipeline directory with its text encoder, tokenizer and scheduler.
        on_import: called with the directory that a single file is about to be copied to.

    Raises:
        ArchError: there is none, or it is damaged.
    """
    path = Path(path)
    if _is(path, "is_file"):
        imported = _import_file(path, Path(components) if components else None, on_import)
        check_loadable(imported)
        return FoundModel(directory=imported, pixel=True, name=name_of(path))
    for candidate in (path, path / "model", path / "train" / "model"):
        if _is(candidate / "model_index.json", "is_file"):
            pixel = check_loadable(candidate)["_class_name"] == PIXEL_PIPELINE
            return FoundModel(directory=candidate, pixel=pixel, name=name_of(path))
    if not _is(path, "exists"):
        raise ArchError(f"{path} does not exist; give a run directory, a model directory or a single file")
    if _is(path / "config.toml", "is_file"):
        raise ArchError(f"the run {path} has no trained model yet; run l2p-transfer again to finish it")
    raise ArchError(f"{path} holds no model_index.json; give a run directory or a model directory")


def _is(path: Path, question: str) -> bool:
    """Return `Path.is_file` or `Path.exists`, and what cannot be answered is said in one line."""
    try:
        return bool(getattr(path, question)())
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, links in a circle, no permission
        raise ArchError(f"{shown(str(path))} cannot be looked at: {reason(error)}") from error


def find_pixel_model(
    path: Path | str,
    components: Path | str | None = None,
    *,
    on_import: Callable[[Path], None] | None = None,
) -> FoundModel:
    """As `find_model`, and it is an L2P model."""
    found = find_model(path, components, on_import=on_import)
    if not found.pixel:
        raise ArchError(f"{found.directory} is no L2P model (a latent one?); make one with l2p-transfer")
    return found


def _import_file(file: Path, components: Path | None, on_import: Callable[[Path], None] | None) -> Path:
    """Return a published single file as a model directory, made once and kept in the user's cache."""
    from l2p_arch.files.recognition import identify
    from l2p_arch.public_models import import_public

    if components is None:
        raise ArchError(
            f"{file} ({identify(file)}) brings no text encoder; add --components with the directory of the"
            " pipeline that it was made from, for example Z-Image-Turbo"
        )
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    state = file.stat()  # hashing 12 GB before every image would cost more than it tells
    identity = f"{state.st_size} {state.st_mtime_ns} {file.resolve()} {components.resolve()}"
    out = base / "l2p" / "imported" / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    # Size and time of writing can be equal by intention (cp -p, touch -r); these the system alone sets.
    note, seen = out.with_name(f"{out.name}.json"), [state.st_ctime_ns, state.st_dev, state.st_ino]
    changed = note.is_file() and _noted(note) != seen
    if changed or not (out / "model_index.json").is_file():
        if on_import:
            on_import(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        import_public(file, components, out, overwrite=changed)
    if changed or not note.is_file():
        note.write_text(json.dumps(seen), encoding="utf-8")
    return out


def _noted(note: Path) -> Any:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, kw_only=True)
class Painter:
    """A model and how it samples; called with a device it loads the model and returns a function from prompts
    and seeds to images.

    Picklable, so that worker processes and Ray actors load the model themselves.
    """

    directory: Path
    dtype: str  # "float32", "bfloat16" or "float16"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline's call, height and width too
    cpu_offload: bool = False  # parts of the pipeline are on the device by turns; changes no image
    tile: int | None = None  # px, of the Detailer Head; changes no image

    def __call__(self, device: str) -> Paint:
        """Load the weights from the directory."""
        pipeline = load_pipeline(
            self.directory, device=device, dtype=self.dtype, cpu_offload=self.cpu_offload, tile=self.tile
        )
        check_options(pipeline, self.options)

        def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
            return paint_images(pipeline, prompts, seeds, **self.options)

        return paint


def check_options(pipeline: Any, options: Mapping[str, Any]) -> None:
    """Raise an ArchError for the first option that a pipeline's call does not take."""
    taken = inspect.signature(pipeline.__call__).parameters
    if unknown := [name for name in options if name not in taken]:
        raise ArchError(f"{type(pipeline).__name__} takes no {', '.join(unknown)}; leave the option out")


def paint_images(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> list[Any]:
    """Return PIL images of prompts, of any pipeline, each from the noise of its own seed.

    Args:
        options: of the pipeline's call.

    Raises:
        ArchError: the pipeline refuses something (sizes, options), or its pixels are no numbers.
    """
    import numpy as np
    import torch
    from PIL import Image

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    finite: list[bool] = []
    try:
        with torch.inference_mode(), _watched(pipeline, finite):
            images = pipeline(prompt=list(prompts), generator=generators, output_type="np", **options).images
    except ArchError:
        raise
    except ValueError as error:  # what pipelines say of sizes and the like
        raise ArchError(f"{type(pipeline).__name__} cannot paint this: {reason(error)}") from error
    for prompt, seed, image in zip(prompts, seeds, images, strict=True):
        if not (np.isfinite(image).all() and all(finite)):
            raise ArchError(
                f"the model computed NaN or infinity for the prompt {shown(prompt)}, seed {seed}; a lower "
                "guidance scale or float32 may help, else its weights are damaged"
            )
    return [Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)) for image in images]


@contextmanager
def _watched(pipeline: Any, finite: list[bool]) -> Iterator[None]:
    """Note whether what a source's VAE decodes is finite: its pipeline makes white and black of infinity."""
    decoder = getattr(getattr(pipeline, "vae", None), "decoder", None)
    if decoder is None:
        yield
        return
    hook = decoder.register_forward_hook(
        lambda _module, _given, pixels: finite.append(bool(pixels.isfinite().all()))
    )
    try:
        yield
    finally:
        hook.remove()

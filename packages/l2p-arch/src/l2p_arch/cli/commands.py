"""What each command of `l2p-arch` does: options -> its result, of which "summary" is for people."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif")


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
        polish="auto" if options.polish is None else options.polish,
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


COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "convert": _convert,
    "upscale": _upscale,
    "identify": _identify,
    "import": _import,
    "export": _export,
    "merge": _merge,
    "quantise": _quantise,
}

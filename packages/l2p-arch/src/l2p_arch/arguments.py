"""Kinds of arguments, checked before any work: numbers, widths, texts, functions, places, pictures."""

from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from typing import Any

from l2p_arch.errors import ArchError

LARGEST_SIDE = 1 << 16
"""px, of a picture that is asked for."""
_OVERSHOOT = 1.5
"""The largest value of a picture in [-1, 1] that was resized with a filter that overshoots."""


def check_numbers(**given: Any) -> None:
    """Raise `ArchError` for what is no number; None stands for a default and passes."""
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ArchError(f"{name} is {value!r}; wanted a number")


def check_counts(*, least: int = 1, **given: Any) -> None:
    """Raise `ArchError` for what is no whole number of at least `least`."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            raise ArchError(f"{name} is {value!r}; wanted a whole number of at least {least}")


def check_patch_size(patch_size: Any) -> None:
    """Raise `ArchError` for what is no side of a patch in pixels."""
    if isinstance(patch_size, bool) or not isinstance(patch_size, Integral) or int(patch_size) < 1:
        raise ArchError(f"patch size {patch_size!r} is not a number of pixels; 16 is usual at 1024 px")


def check_seed(seed: Any) -> None:
    """Raise `ArchError` for what PyTorch's generators do not take as a seed."""
    usual = "use one between 0 and 2**64 - 1"
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ArchError(f"seed {seed!r} is no whole number; {usual}")
    if not -(2**63) <= int(seed) < 2**64:
        raise ArchError(f"seed {seed} has more than 64 bits; {usual}")


def check_widths(name: str, widths: Any) -> None:
    """Raise `ArchError` for what is no list of whole numbers of at least 1; an empty one passes."""
    whole = isinstance(widths, Sequence) and all(
        isinstance(width, Integral) and not isinstance(width, bool) for width in widths
    )
    if not whole or any(width < 1 for width in widths):
        shown = tuple(widths) if whole else repr(widths)
        raise ArchError(f"{name} {shown} must be positive widths, one per level, finest first")


def check_texts(**given: Any) -> None:
    """Raise `ArchError` for what is neither a text nor a list of texts; None passes.

    A generator is no list: it could be read once, and the texts are counted before they are encoded.
    """
    for name, value in given.items():
        if value is None or isinstance(value, str):
            continue
        if isinstance(value, bytes | Mapping) or not isinstance(value, Collection):
            raise ArchError(f"{name} is {value!r}; wanted a text, or a list of texts")
        if not all(isinstance(text, str) for text in value):
            raise ArchError(f"{name} is {value!r}, which are not all text")


def check_names(**given: Any) -> None:
    """Raise `ArchError` for what is no text."""
    for name, value in given.items():
        if not isinstance(value, str):
            raise ArchError(f"{name} is {value!r}; wanted a text")


def check_flags(**given: Any) -> None:
    """Raise `ArchError` for what is neither True nor False: "no" would count as True."""
    for name, value in given.items():
        if not isinstance(value, bool):
            raise ArchError(f"{name} is {value!r}; wanted True or False")


def check_paths(**given: Any) -> None:
    """Raise `ArchError` for what is no path."""
    for name, value in given.items():
        if not isinstance(value, str | PathLike) or value == "":
            raise ArchError(f"{name} is {value!r}; wanted a path")


def check_callables(**given: Any) -> None:
    """Raise `ArchError` for what cannot be called; None passes."""
    for name, value in given.items():
        if value is not None and not callable(value):
            raise ArchError(f"{name} is {value!r}; wanted a function")


def check_pictures(name: str, images: Any) -> None:
    """Raise `ArchError` for what are no pictures (N, 3, H, W), floats in [-1, 1]."""
    import torch  # here, for surgery begins to copy before it is imported

    wanted = "wanted (N, 3, H, W) in [-1, 1]"
    if not isinstance(images, torch.Tensor):
        raise ArchError(f"{name} are {type(images).__name__}; wanted a tensor (N, 3, H, W) in [-1, 1]")
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ArchError(f"{name} have the shape {tuple(images.shape)}; {wanted}")
    if not images.is_floating_point():
        raise ArchError(f"{name} are {images.dtype}; {wanted}: values / 127.5 - 1, if they are 0 to 255")
    if not bool(torch.isfinite(images).all()):
        raise ArchError(f"{name} hold NaN or infinity; {wanted}")
    lowest, highest = float(images.min()), float(images.max())
    if lowest < -_OVERSHOOT or highest > _OVERSHOOT:
        raise ArchError(
            f"{name} go from {lowest:.3g} to {highest:.3g}; {wanted}: values / 127.5 - 1, if they are 0 to "
            "255"
        )


def check_captions(prompts: Any, count: int) -> None:
    """Raise `ArchError` for what are not `count` texts, one for each calibration image; None passes."""
    check_texts(calibration_prompts=prompts)
    if prompts is not None and (isinstance(prompts, str) or len(prompts) != count):
        given = "one text" if isinstance(prompts, str) else f"{len(prompts)} texts"
        raise ArchError(f"calibration_prompts are {given} for {count} images; wanted one for each image")

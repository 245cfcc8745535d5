"""Pixel-space diffusion transformers from latent ones: patchify, Detailer Head, weight surgery (L2P, sec.
3.3)."""

from importlib import import_module
from typing import Any

from l2p_arch.errors import ArchError

_HOMES = {
    "Conditioning": "l2p_arch.families",
    "DetailerHead": "l2p_arch.detailer",
    "FAMILIES": "l2p_arch.families",
    "Family": "l2p_arch.families",
    "L2PPipeline": "l2p_arch.pipeline",
    "L2PTransformer": "l2p_arch.model",
    "SurgeryReport": "l2p_arch.surgery",
    "convert": "l2p_arch.surgery",
    "patches_to_pixels": "l2p_arch.patchify",
    "pixels_to_patches": "l2p_arch.patchify",
}

__all__ = [
    "FAMILIES",
    "ArchError",
    "Conditioning",
    "DetailerHead",
    "Family",
    "L2PPipeline",
    "L2PTransformer",
    "SurgeryReport",
    "convert",
    "patches_to_pixels",
    "pixels_to_patches",
]


def __getattr__(name: str) -> Any:
    """Load the home of a public name on first use: torch and diffusers take seconds to import."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "ModelMixin":
        # diffusers asks the library named in model_index.json for this base class to learn how to load a
        # component.
        return import_module("diffusers").ModelMixin
    raise AttributeError(f"module 'l2p_arch' has no attribute {name!r}")

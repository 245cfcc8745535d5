"""Pixel-space diffusion transformers from latent ones: patchify, Detailer Head, weight surgery (L2P, sec.
3.3)."""

from importlib import import_module
from typing import Any

from l2p_arch.errors import ArchError

_HOMES = {
    "Conditioning": "l2p_arch.families",
    "CutPromptWarning": "l2p_arch.sampling.cut_prompts",
    "DetailerHead": "l2p_arch.detailer",
    "FAMILIES": "l2p_arch.families",
    "Family": "l2p_arch.families",
    "L2PPipeline": "l2p_arch.sampling.pipeline",
    "L2PTransformer": "l2p_arch.model",
    "PUBLIC_LAYOUTS": "l2p_arch.files.public_layout",
    "SurgeryReport": "l2p_arch.surgery.report",
    "convert": "l2p_arch.surgery.convert",
    "extend_canvas": "l2p_arch.sampling.inpainting",
    "export_gguf": "l2p_arch.gguf_models",
    "export_public": "l2p_arch.public_models",
    "fingerprint": "l2p_arch.files.recognition",
    "identify": "l2p_arch.files.recognition",
    "import_public": "l2p_arch.public_models",
    "merge_delta": "l2p_arch.files.delta",
    "patches_to_pixels": "l2p_arch.patchify",
    "pixels_to_patches": "l2p_arch.patchify",
    "quantise": "l2p_arch.quantised_models",
    "save_delta": "l2p_arch.files.delta",
    "upscale": "l2p_arch.surgery.upscale",
    "weights_hash": "l2p_arch.files.delta",
    "write_model_card": "l2p_arch.files.model_card",
}

__all__ = [
    "FAMILIES",
    "PUBLIC_LAYOUTS",
    "ArchError",
    "Conditioning",
    "CutPromptWarning",
    "DetailerHead",
    "Family",
    "L2PPipeline",
    "L2PTransformer",
    "SurgeryReport",
    "convert",
    "export_gguf",
    "export_public",
    "extend_canvas",
    "fingerprint",
    "identify",
    "import_public",
    "merge_delta",
    "patches_to_pixels",
    "pixels_to_patches",
    "quantise",
    "save_delta",
    "upscale",
    "weights_hash",
    "write_model_card",
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

"""The nodes: load a model, put LoRAs on it, sample with our own pipeline.

ComfyUI's sampler, VAE and text encoder nodes are not used: an L2P model has no latent, and brings its own
text encoder. ComfyUI itself is imported when a node runs, for its device, its progress bar and its stop
button.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from l2p_run.devices import DTYPES, choose_device, resolve_dtype
from PIL import Image

from l2p_comfyui.models import Model, load

if TYPE_CHECKING:
    from torch import Tensor

CATEGORY = "L2P"
_LARGEST_SEED = 2**63 - 1


class LoadModel:
    """A run directory, a model directory, or a published single file with its pipeline's directory."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "load", ("L2P_MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "path": ("STRING", {"default": ""}),
                "dtype": (["auto", *DTYPES],),
                "cpu_offload": ("BOOLEAN", {"default": False}),
                "tile": ("INT", {"default": 0, "min": 0, "max": 1 << 16}),  # px, of the head; 0: whole
            },
            "optional": {"components": ("STRING", {"default": ""})},
        }

    def load(self, path: str, dtype: str, cpu_offload: bool, tile: int, components: str = "") -> tuple[Model]:
        host = _host("comfy.model_management")
        device = str(host.get_torch_device()) if host else choose_device()
        precision = resolve_dtype(dtype, device)
        options: dict[str, Any] = {"device": device, "dtype": precision, "tile": tile or None}
        return (load(path, components, cpu_offload=cpu_offload, **options),)


class LoadLora:
    """One more LoRA on a model; in any of the layouts in circulation."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "load", ("L2P_MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        weight = ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05})
        return {"required": {"model": ("L2P_MODEL",), "file": ("STRING", {"default": ""}), "weight": weight}}

    def load(self, model: Model, file: str, weight: float) -> tuple[Model]:
        return (model.with_adapter(file, weight),)


class Sample:
    """Images of a prompt; with an image, from there; with a mask too, only where it is white."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "sample", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def own(kind: str, most: float, **more: Any) -> tuple[str, dict[str, Any]]:
            return kind, {"default": 0, "min": 0, "max": most, "tooltip": "0: the model's own", **more}

        return {
            "required": {
                "model": ("L2P_MODEL",),
                "prompt": ("STRING", {"multiline": True}),
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
                "seed": ("INT", {"default": 42, "min": 0, "max": _LARGEST_SEED}),
                "images": ("INT", {"default": 1, "min": 1, "max": 64}),
                "width": own("INT", 1 << 16),
                "height": own("INT", 1 << 16),
                "steps": own("INT", 10_000),
                "guidance": own("FLOAT", 100.0, step=0.1),
                "shift": own("FLOAT", 100.0, step=0.1),
            },
            "optional": {
                "image": ("IMAGE",),
                "mask": ("MASK",),
                "strength": ("FLOAT", {"default": 0.6, "min": 0.0, "max": 1.0, "step": 0.05}),
            },
        }

    def sample(
        self,
        model: Model,
        prompt: str,
        negative_prompt: str,
        seed: int,
        images: int,
        width: int = 0,
        height: int = 0,
        steps: int = 0,
        guidance: float = 0.0,
        shift: float = 0.0,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        strength: float = 0.6,
    ) -> tuple[Tensor]:
        import torch

        given = {
            "width": width,
            "height": height,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "noise_shift": shift,
        }
        options: dict[str, Any] = {name: value for name, value in given.items() if value}
        if image is not None:
            options["image"] = _to_pil(image)
            images = max(images, len(image))
            options |= {"strength": strength} if mask is None else {"mask_image": _to_pil(mask)}
            if not (width or height):  # the picture's own, and with a mask the rest of it stays as it is
                options |= {"width": None, "height": None}
        total = options.get("num_inference_steps", model.sampling.num_inference_steps)
        seeds = [seed + number for number in range(images)]
        negative = [negative_prompt] * images
        painted = model.paint([prompt] * images, seeds, _Watch(total), negative_prompt=negative, **options)
        return (torch.from_numpy(np.stack([np.asarray(each, np.float32) / 255 for each in painted])),)


class _Watch:
    """After each step: ComfyUI's progress bar with a preview, and its stop button."""

    def __init__(self, total: int) -> None:
        from l2p_arch.sampling.preview import Preview

        utils, self.management = _host("comfy.utils"), _host("comfy.model_management")
        self.bar = utils.ProgressBar(total) if utils else None
        self.total, self.preview = total, Preview()

    def __call__(self, step: int, sigma: float, x_t: Tensor) -> None:
        if self.management:
            self.management.throw_exception_if_processing_interrupted()
        if self.bar:
            x_0 = self.preview.after(sigma, x_t)
            shown = None if x_0 is None else ("JPEG", _to_pil(x_0.permute(1, 2, 0)[None] / 2 + 0.5)[0], 512)
            self.bar.update_absolute(step + 1, self.total, shown)


def _host(name: str) -> Any:
    """Return a module of ComfyUI; None where the nodes run without it."""
    try:
        return import_module(name)
    except ImportError:
        return None


def _to_pil(pixels: Tensor) -> list[Image.Image]:
    """Return PIL images of ComfyUI's (N, H, W, 3) images or (N, H, W) masks in [0, 1]."""
    levels = (pixels.detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    return [Image.fromarray(each) for each in levels]

"""What sampling starts from: noise of each image's own generator, and the images of image-to-image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from l2p_arch.errors import ArchError


def generators_of(
    count: int,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[torch.Generator]:
    """One generator per image: of its seed, as given, or PyTorch's own for all."""
    if seeds is not None and generator is not None:
        raise ArchError("seeds and generator were both given; one of them decides the images")
    if isinstance(seeds, int):
        raise ArchError(f"seeds is {seeds}; give one per image, such as [{seeds}]")
    if seeds is not None:
        generators = [_seeded(int(seed)) for seed in seeds]
    elif isinstance(generator, torch.Generator) or generator is None:
        generators = [generator or torch.default_generator] * count
    else:
        generators = list(generator)
    if len(generators) != count:
        raise ArchError(f"{len(generators)} seeds or generators for {count} images; give one per image")
    return generators


def _seeded(seed: int) -> torch.Generator:
    if not -(2**63) <= seed < 2**64:
        raise ArchError(f"seed {seed} has more than 64 bits; use one between 0 and 2**64 - 1")
    return torch.Generator().manual_seed(seed)


def draw_noise(generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
    """Standard normal noise (N, 3, height, width), float32, drawn image by image where its generator lies."""
    drawn = [torch.randn(3, height, width, generator=each, device=each.device) for each in generators]
    return torch.stack([each.cpu() for each in drawn])


def start_from(image: Any, noise: Tensor, scheduler: Any, strength: float) -> tuple[Tensor, int]:
    """What to sample from, and the step to begin with: the images, noised to where the last `strength` of the
    schedule begins; or noise, where there are none."""
    if not 0 <= strength <= 1:
        raise ArchError(f"strength {strength} is not between 0 and 1")
    if image is None:
        return noise, 0
    x_0 = _to_pixels(image, len(noise), *noise.shape[-2:]).to(noise.device)
    first = len(scheduler.timesteps) - round(len(scheduler.timesteps) * strength)
    if first == len(scheduler.timesteps):
        return x_0, first
    first -= first % scheduler.order  # never between the two evaluations of one Heun step
    scheduler.set_begin_index(first)
    sigma = scheduler.sigmas[first].to(x_0)
    return (1 - sigma) * x_0 + sigma * noise, first


def _to_pixels(image: Any, count: int, height: int, width: int) -> Tensor:
    """Given images as (count, 3, height, width) in [-1, 1], float32."""
    if not isinstance(image, np.ndarray | Tensor):
        image = _stacked(image, height, width)
    if isinstance(image, np.ndarray):
        if image.ndim not in (3, 4) or (image.dtype.kind != "f" and image.dtype != np.uint8):
            raise ArchError(
                f"image is an array of the shape {image.shape} and {image.dtype}; "
                "wanted (N, H, W, 3) floats in [0, 1], or uint8"
            )
        array = torch.from_numpy(np.moveaxis(image, -1, -3).copy())
        image = array if array.dtype == torch.uint8 else array * 2 - 1
    image = image[None] if image.ndim == 3 else image
    if image.dtype == torch.uint8:
        image = image / 127.5 - 1
    if image.shape[1:] != (3, height, width) or len(image) not in (1, count):
        raise ArchError(
            f"image has the shape {tuple(image.shape)}; wanted ({count}, 3, {height}, {width}), or 1 for all"
        )
    # What was sampled may leave [-1, 1] a little; the comparison is false for NaN, too.
    if not (image.is_floating_point() and bool(image.abs().max() <= 2)):
        raise ArchError(
            f"image holds {image.dtype} values up to {float(image.abs().max()):g}; wanted floats in [-1, 1] "
            "(arrays in [0, 1]), or uint8"
        )
    return image.float().expand(count, -1, -1, -1)


def _stacked(image: Any, height: int, width: int) -> Any:
    """One picture, or a list of pictures, arrays or tensors, as a batch."""
    images: list[Any] = [image] if isinstance(image, Image.Image) else list(image)
    if images and all(isinstance(each, Image.Image) for each in images):
        resized = (each.convert("RGB").resize((width, height), Image.Resampling.LANCZOS) for each in images)
        return np.stack([np.array(each) for each in resized])
    for kind, stack in ((Tensor, torch.stack), (np.ndarray, np.stack)):
        if images and all(isinstance(each, kind) for each in images):
            shapes = [tuple(each.shape) for each in images]
            if len(set(shapes)) > 1:
                raise ArchError(f"the images have the shapes {shapes}; wanted one for all")
            return stack(images)
    kinds = ", ".join(sorted({type(each).__name__ for each in images})) or "nothing"
    raise ArchError(f"image is a list of {kinds}; wanted PIL images, tensors or arrays")

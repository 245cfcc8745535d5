"""What sampling starts from: noise of the images' own generators, or images noised to a step of the
schedule."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from l2p_arch.arguments import check_seed
from l2p_arch.errors import ArchError
from l2p_arch.sampling.arguments import given_generators, whole_seeds
from l2p_arch.sampling.pictures import as_people_see_it

Hold = Callable[[Tensor, int], Tensor]
"""(state before a step of the schedule, that step's number) -> the state with the pixels that are kept."""


def generators_of(
    count: int,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[torch.Generator]:
    """Return one generator per image: of its seed, as given, or PyTorch's own for all."""
    if seeds is not None and generator is not None:
        raise ArchError("seeds and generator were both given; one of them decides the images")
    if isinstance(seeds, int):
        raise ArchError(f"seeds is {seeds}; give one per image, such as [{seeds}]")
    if seeds is not None:
        generators = [_seeded(seed) for seed in whole_seeds(seeds)]
    elif isinstance(generator, torch.Generator) or generator is None:
        generators = [generator or torch.default_generator] * count
    else:
        generators = given_generators(generator)
    if len(generators) != count:
        raise ArchError(f"{len(generators)} seeds or generators for {count} images; give one per image")
    return generators


def _seeded(seed: int) -> torch.Generator:
    check_seed(seed)
    return torch.Generator().manual_seed(seed)


def draw_noise(generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
    """Draw standard normal noise (N, 3, height, width), float32, image by image where its generator lies."""
    drawn = [torch.randn(3, height, width, generator=each, device=each.device) for each in generators]
    return torch.stack([each.cpu() for each in drawn])


def check_noise(latents: Tensor, count: int, height: int, width: int) -> Tensor:
    """Return the noise that a caller brings in place of a seed's, (count, 3, height, width), float32."""
    if not isinstance(latents, Tensor) or tuple(latents.shape) != (count, 3, height, width):
        given = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ArchError(f"latents is {given}; wanted noise of the shape ({count}, 3, {height}, {width})")
    if not bool(torch.isfinite(latents).all()):
        raise ArchError("latents holds NaN or infinity; wanted standard normal noise")
    return latents.float()


def start_from(
    image: Any, noise: Tensor, scheduler: Any, strength: float, mask: Tensor | None = None
) -> tuple[Tensor, int, Hold | None]:
    """Return what to sample from, the step to begin with, and how to keep what a mask leaves alone.

    Args:
        image: pictures or pixels, see `L2PPipeline`; None for none.
        noise: (N, 3, H, W).
        scheduler: with its schedule set.
        strength: the share of the schedule that is run.
        mask: (N, 1, H, W) in [0, 1]. A pixel of the mask's value m takes part in the last `m * strength` of
            the schedule: at 0 it stays as it is, at 1 it is painted like the whole image without a mask.

    Returns:
        The images, noised to where the schedule begins, or the noise, where there are none; the number of the
        step to begin with; and a function that puts kept pixels back, None without a mask.
    """
    if not 0 <= strength <= 1:
        raise ArchError(f"strength {strength} is not between 0 and 1")
    if image is None:
        return noise, 0, None
    x_0 = to_pixels(image, len(noise), *noise.shape[-2:]).to(noise.device)
    steps = len(scheduler.timesteps)
    if mask is None:
        first = steps - round(steps * strength)
        if first == steps:
            return x_0, first, None
        first -= first % scheduler.order  # never between the two evaluations of one Heun step
        scheduler.set_begin_index(first)
        return _noised(x_0, noise, scheduler.sigmas[first]), first, None
    begins = steps - torch.round(steps * strength * mask.double().to(noise.device)).long()
    begins = torch.where(begins == steps, begins, begins - begins % scheduler.order)
    first = int(begins.min())

    def hold(x_t: Tensor, step: int) -> Tensor:
        if step == steps:  # sigma 0: their own values, bit by bit
            return torch.where(begins == steps, x_0, x_t)
        return torch.where(begins >= step, _noised(x_0, noise, scheduler.sigmas[step]), x_t)

    if first == steps:
        return x_0, first, hold
    scheduler.set_begin_index(first)
    return _noised(x_0, noise, scheduler.sigmas[first]), first, hold


def _noised(x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    sigma = sigma.to(x_0)
    return (1 - sigma) * x_0 + sigma * noise


def size_of(image: Any) -> tuple[int, int]:
    """Return the height and width of what a user gave as `image`, px, upright."""
    one = image
    if isinstance(image, list | tuple):
        if not image:
            raise ArchError("image is an empty list; give one picture, or one per image")
        one = image[0]
    if isinstance(one, Image.Image):
        turned = one.getexif().get(0x0112, 1) >= 5  # EXIF orientations that swap the sides
        return (one.width, one.height) if turned else (one.height, one.width)
    if isinstance(one, np.ndarray) and one.ndim >= 3:
        return int(one.shape[-3]), int(one.shape[-2])
    if isinstance(one, Tensor) and one.ndim >= 3:
        return int(one.shape[-2]), int(one.shape[-1])
    raise ArchError(f"image is {type(one).__name__}; wanted PIL images, tensors (N, 3, H, W) or arrays")


def to_pixels(image: Any, count: int, height: int, width: int) -> Tensor:
    """Given images as (count, 3, height, width) in [-1, 1], float32; pictures are resized."""
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
        most = f" up to {float(image.abs().max()):g}" if image.is_floating_point() else ""
        raise ArchError(
            f"image holds {image.dtype} values{most}; wanted floats in [-1, 1] (arrays in [0, 1]), or uint8"
        )
    return image.float().expand(count, -1, -1, -1)


def _stacked(image: Any, height: int, width: int) -> Any:
    """Return one picture, or a list of pictures, arrays or tensors, as a batch."""
    if not isinstance(image, Image.Image | list | tuple):
        raise ArchError(f"image is {type(image).__name__}; wanted PIL images, tensors (N, 3, H, W) or arrays")
    images: list[Any] = [image] if isinstance(image, Image.Image) else list(image)
    if images and all(isinstance(each, Image.Image) for each in images):
        upright = [as_people_see_it(each) for each in images]
        resized = (each.resize((width, height), Image.Resampling.LANCZOS) for each in upright)
        return np.stack([np.array(each) for each in resized])
    for kind, stack in ((Tensor, torch.stack), (np.ndarray, np.stack)):
        if images and all(isinstance(each, kind) for each in images):
            shapes = [tuple(each.shape) for each in images]
            if len(set(shapes)) > 1:
                raise ArchError(f"the images have the shapes {shapes}; wanted one for all")
            return stack(images)
    kinds = ", ".join(sorted({type(each).__name__ for each in images})) or "nothing"
    raise ArchError(f"image is a list of {kinds}; wanted PIL images, tensors or arrays")

"""Recipes -> images: the pipelines, and the batches that they paint."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.errors import raised_as
from l2p_run.pictures import open_picture
from PIL import Image

from l2p_generate.errors import GenerateError
from l2p_generate.model import Source, weights_fingerprint
from l2p_generate.recipe import Recipe, file_sha256, versions

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image and how to make it again."""

    image: Image.Image
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class Painter:
    """A loaded L2P model."""

    pipeline: Any  # L2PPipeline
    name: str
    weights: str
    dtype: str
    device: str


def load_painter(
    model: Path,
    *,
    name: str,
    device: str | None = None,
    dtype: str = "auto",
    cpu_offload: bool = False,
    tile: int | None = None,
) -> Painter:
    """Loads an L2P model directory; only safetensors, only local files.

    Args:
        cpu_offload: text encoder and transformer are on the device by turns.
        tile: px, of the Detailer Head's tiles; None runs it whole.
    """
    import torch
    from l2p_arch import L2PPipeline

    device = choose_device(device)
    dtype = resolve_dtype(dtype, device)
    pipeline = _to_device(
        L2PPipeline.from_pretrained(
            model, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        ),
        device,
        cpu_offload,
    )
    if tile is not None and hasattr(pipeline.transformer.detailer_head, "enable_tiling"):
        pipeline.transformer.detailer_head.enable_tiling(tile)
    return Painter(
        pipeline=pipeline, name=name, weights=weights_fingerprint(model), dtype=dtype, device=device
    )


def _to_device(pipeline: Any, device: str, cpu_offload: bool) -> Any:
    try:
        if cpu_offload:
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
    except (RuntimeError, AssertionError) as error:
        raise GenerateError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(
    painter: Painter, recipes: Sequence[Recipe], *, batch_size: int = 1, on_step: OnStep | None = None
) -> list[Picture]:
    """The images of `recipes`, in their order.

    Recipes that differ in more than prompt and seed are not painted together; one that names its own batch is
    painted in it again.

    Args:
        batch_size: images at once, for recipes that name no batch.
    """
    batches = _batches(recipes, batch_size)
    sampled = [_steps(batch[0]) for batch in batches]
    pictures: list[Picture] = []
    for number, batch in enumerate(batches):
        before, total = sum(sampled[:number]), sum(sampled)

        def step(done: int, _sigma: float, _state: Any, before: int = before, total: int = total) -> None:
            if on_step:
                on_step(before + done + 1, total)

        images = _paint_batch(painter, batch, step)
        for place, (recipe, image) in enumerate(zip(batch, images, strict=True)):
            if recipe.batch and place != recipe.place:
                continue  # a companion
            made = replace(
                recipe,
                model=painter.name,
                weights=painter.weights,
                dtype=painter.dtype,
                device=painter.device.partition(":")[0],
                versions=versions(),
                batch=tuple((one.prompt, one.seed) for one in batch) if len(batch) > 1 else (),
                place=place,
            )
            pictures.append(Picture(image=image, recipe=made))
    return pictures


def _batches(recipes: Sequence[Recipe], batch_size: int) -> list[list[Recipe]]:
    """Recipes to paint together."""
    batches: list[list[Recipe]] = []
    for recipe in recipes:
        if recipe.batch:
            batches.append([replace(recipe, prompt=prompt, seed=seed) for prompt, seed in recipe.batch])
            continue
        last = batches[-1] if batches else []
        alike = (
            last
            and not last[0].batch
            and replace(recipe, prompt="", seed=0) == replace(last[0], prompt="", seed=0)
        )
        if alike and len(last) < batch_size:
            last.append(recipe)
        else:
            batches.append([recipe])
    return batches


def _steps(recipe: Recipe) -> int:
    """Steps that an image takes."""
    steps = recipe.sampling.num_inference_steps
    return steps if recipe.image is None else round(steps * (recipe.strength or 0))


def _paint_batch(
    painter: Painter, batch: Sequence[Recipe], on_step: Callable[..., None]
) -> list[Image.Image]:
    first = batch[0]
    start = {} if first.image is None else {"image": open_start(first), "strength": first.strength}
    images: list[Image.Image] = painter.pipeline(
        [recipe.prompt for recipe in batch],
        seeds=[recipe.seed for recipe in batch],
        negative_prompt=first.negative_prompt,
        on_step=on_step,
        **start,
        **asdict(first.sampling),
    ).images
    return images


def open_start(recipe: Recipe) -> Image.Image:
    """The image that an image-to-image recipe starts from.

    Raises:
        GenerateError: it is not there, is no image, or is not the one that the recipe was made with.
    """
    assert recipe.image is not None
    path = Path(recipe.image)
    if not path.is_file():
        raise GenerateError(f"--image {path} does not exist; give the picture to start from")
    if recipe.image_sha256 and file_sha256(path) != recipe.image_sha256:
        raise GenerateError(
            f"{path} is not the picture that the recipe started from; give that one with --image"
        )
    return raised_as(GenerateError)(open_picture)(path, name=f"--image {path}")


def load_source(
    source: Source, *, device: str, dtype: str, cpu_offload: bool = False
) -> Callable[..., list[Image.Image]]:
    """The source's own pipeline as a function of (prompts, seeds, height, width)."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = _to_device(
        DiffusionPipeline.from_pretrained(
            source.path, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        ),
        device,
        cpu_offload,
    )

    @torch.inference_mode()
    def call(prompts: Sequence[str], seeds: Sequence[int], *, height: int, width: int) -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images: list[Image.Image] = pipeline(
            prompt=list(prompts), height=height, width=width, generator=generators, **source.options
        ).images
        return images

    return call


def quiet_libraries() -> None:
    """No hub, no progress bars, no advice: the command speaks for itself."""
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()

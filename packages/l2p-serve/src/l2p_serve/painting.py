"""Recipes -> images: the loaded model, and the batches that it paints."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError
from l2p_arch.sampling.painter import FoundModel, check_options, load_pipeline, paint_images
from l2p_run import hashes
from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.pictures import open_picture
from PIL import Image

from l2p_serve.errors import ServeError
from l2p_serve.fingerprint import weights_hash
from l2p_serve.recipe import Adapter, Recipe, versions

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
    adapters: tuple[Adapter, ...] = ()

    def set_weights(self, adapters: Sequence[Adapter]) -> None:
        """Give the loaded adapters these weights."""
        if self.adapters:
            self.pipeline.set_adapters(_names(self.adapters), [one.weight for one in adapters])

    def check(self, recipe: Recipe) -> None:
        """Refuse a size that is not of whole patches; what is painted into a picture has its size."""
        from l2p_arch.patchify import check_size

        if recipe.mask is None:
            sampling, patch_size = recipe.sampling, self.pipeline.transformer.patch_size
            check_size(sampling.height, sampling.width, patch_size)

    def paint(self, recipes: Sequence[Recipe], on_step: Callable[..., None]) -> list[Image.Image]:
        """See `paint_together`."""
        return paint_together(self, recipes, on_step)

    def signed(self, recipe: Recipe, companions: tuple[tuple[str, int], ...] = (), place: int = 0) -> Recipe:
        """Return the recipe with what painted it, and the batch that it was painted in."""
        return replace(
            recipe,
            model=self.name,
            weights=self.weights,
            dtype=self.dtype,
            device=self.device.partition(":")[0],
            versions=versions(),
            batch=companions,
            place=place,
        )


def load_painter(
    model: FoundModel,
    *,
    device: str | None = None,
    dtype: str = "auto",
    cpu_offload: bool = False,
    tile: int | None = None,
    adapters: Sequence[Adapter] = (),
) -> Painter:
    """Load an L2P model directory, and adapters on top; only safetensors, only local files.

    Args:
        cpu_offload: text encoder and transformer are on the device by turns.
        tile: px, of the Detailer Head's tiles; None runs it whole.
    """
    device = choose_device(device)
    dtype = resolve_dtype(dtype, device)
    try:
        pipeline = load_pipeline(
            model.directory, device=device, dtype=dtype, cpu_offload=cpu_offload, tile=tile
        )
    except ArchError as error:
        raise ServeError(str(error).replace("the device ", "--device ", 1)) from error
    for adapter, name in zip(adapters, _names(adapters), strict=True):
        file = Path(adapter.file)
        if not file.is_file() or hashes.of_file(file) != adapter.sha256:
            raise ServeError(f"the adapter {file} is not the one of the recipe; give that with --lora")
        pipeline.load_lora_weights(str(file), adapter_name=name)
    painter = Painter(
        pipeline=pipeline,
        name=model.name,
        weights=weights_hash(model.directory),
        dtype=dtype,
        device=device,
        adapters=tuple(adapters),
    )
    painter.set_weights(painter.adapters)
    return painter


def _names(adapters: Sequence[Adapter]) -> list[str]:
    return [f"lora_{number}" for number in range(len(adapters))]


def paint(
    painter: Painter, recipes: Sequence[Recipe], *, batch_size: int = 1, on_step: OnStep | None = None
) -> list[Picture]:
    """Return the images of `recipes`, in their order; see `paint_each`."""
    return list(paint_each(painter, recipes, batch_size=batch_size, on_step=on_step))


def paint_each(
    painter: Painter, recipes: Sequence[Recipe], *, batch_size: int = 1, on_step: OnStep | None = None
) -> Iterator[Picture]:
    """Yield the images of `recipes`, in their order, each when its batch is done.

    Recipes that differ in more than prompt and seed are not painted together; one that names its own batch is
    painted in it again.

    Args:
        batch_size: images at once, for recipes that name no batch.
    """
    batches = _batches(recipes, batch_size)
    sampled = [_steps(batch[0]) for batch in batches]
    for number, batch in enumerate(batches):
        before, total = sum(sampled[:number]), sum(sampled)

        def step(done: int, _sigma: float, _state: Any, before: int = before, total: int = total) -> None:
            if on_step:
                on_step(before + done + 1, total)

        images = paint_together(painter, batch, step)
        for place, (recipe, image) in enumerate(zip(batch, images, strict=True)):
            if recipe.batch and place != recipe.place:
                continue  # a companion
            companions = tuple((one.prompt, one.seed) for one in batch) if len(batch) > 1 else ()
            yield Picture(image=image, recipe=painter.signed(recipe, companions, place))


def _batches(recipes: Sequence[Recipe], batch_size: int) -> list[list[Recipe]]:
    """Return recipes to paint together."""
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
    """Return steps that an image takes."""
    steps = recipe.sampling.num_inference_steps
    return steps if recipe.image is None or recipe.strength is None else round(steps * recipe.strength)


def paint_together(
    painter: Painter, batch: Sequence[Recipe], on_step: Callable[[int, float, Any], None]
) -> list[Image.Image]:
    """Return the images of recipes that differ in prompt, negative prompt and seed only.

    Raises:
        ArchError, ServeError: the model refuses them, or computes NaN.
    """
    first = batch[0]
    options: dict[str, Any] = {**first.sampling.options, **_start(first)}
    painter.set_weights(first.adapters)
    check_options(painter.pipeline, options)
    return paint_images(
        painter.pipeline,
        [recipe.prompt for recipe in batch],
        [recipe.seed for recipe in batch],
        negative_prompt=[recipe.negative_prompt for recipe in batch],
        on_step=on_step,
        **options,
    )


def _start(recipe: Recipe) -> dict[str, Any]:
    """Return the options of image-to-image and inpainting."""
    if recipe.image is None:
        return {}
    image = open_start(recipe.image, recipe.image_sha256, "image")
    found: dict[str, Any] = {"image": image}
    if recipe.strength is not None:
        found["strength"] = recipe.strength
    if recipe.mask is not None:
        found["mask_image"] = open_start(recipe.mask, recipe.mask_sha256, "mask")
        if image.size == (recipe.sampling.width, recipe.sampling.height):
            found |= {"height": None, "width": None}  # as it is, whole patches or not
    return found


def open_start(file: str, sha256: str | None, flag: str) -> Image.Image:
    """Return a picture that a recipe starts from.

    Raises:
        ServeError: it is not there, is no image, or is not the one that the recipe was made with.
    """
    path = Path(file)
    if not path.is_file():
        raise ServeError(f"--{flag} {path} does not exist; give the picture to start from")
    if sha256 and hashes.of_file(path) != sha256:
        raise ServeError(
            f"{path} is not the picture that the recipe started from; give that one with --{flag}"
        )
    return open_picture(path, background="black" if flag == "mask" else "white", name=f"--{flag} {path}")


@contextmanager
def cut_prompts_said(say: Callable[[str], None]) -> Iterator[None]:
    """Hand on in words what l2p-arch warns of, such as a prompt that is longer than the model reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        plain = warnings.showwarning

        def show(message: Any, category: Any, filename: str, *rest: Any, **options: Any) -> None:
            if category.__module__.startswith("l2p_arch"):
                say(" ".join(str(message).split()))
            elif not issubclass(category, UserWarning):
                plain(message, category, filename, *rest, **options)

        warnings.showwarning = show
        yield

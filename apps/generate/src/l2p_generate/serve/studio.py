"""What the server does: checks requests, paints them one after the other, keeps the files."""

import argparse
import random
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2p_arch.sampling.painter import FoundModel, find_model
from l2p_run.pictures import open_picture
from l2p_run.places import make_folder
from l2p_run.progress import say
from PIL import Image

from l2p_generate.errors import GenerateError
from l2p_generate.files import save
from l2p_generate.model import (
    Sampling,
    Source,
    announce_import,
    check_size,
    choose_model,
    find_source,
    sampling_defaults,
)
from l2p_generate.painting import OnStep, Painter, cut_prompts_said, load_painter, load_source, paint_each
from l2p_generate.recipe import Recipe
from l2p_generate.request import read_adapter, start_from
from l2p_generate.text import check_text

LARGEST_SEED = 2**32 - 1


class Stopped(GenerateError):
    """The server ends."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest request. The page shows it; the server enforces it, for others than the page may ask."""

    images: int = 4
    steps: int = 100
    side: int = 2048  # px
    characters: int = 4000  # of a prompt

    def check(self, recipe: Recipe, images: int) -> None:
        """Raises for the first thing of a request that is too large or makes no sense."""
        if not recipe.prompt.strip():
            raise GenerateError("the prompt is empty; say what to paint")
        if len(recipe.prompt) + len(recipe.negative_prompt) > self.characters:
            raise GenerateError(f"the prompt is longer than {self.characters} characters; shorten it")
        check_text(recipe.prompt, "the prompt")
        check_text(recipe.negative_prompt, "the negative prompt")
        recipe.sampling.check()
        for name, value, most in (
            ("images", images, self.images),
            ("steps", recipe.sampling.num_inference_steps, self.steps),
            ("height", recipe.sampling.height, self.side),
            ("width", recipe.sampling.width, self.side),
        ):
            if not 1 <= value <= most:
                raise GenerateError(f"{name} {value} is not between 1 and {most}")
        if not 0 <= recipe.seed <= LARGEST_SEED:
            raise GenerateError(f"seed {recipe.seed} is not between 0 and {LARGEST_SEED}")
        if recipe.strength is not None and not 0 <= recipe.strength <= 1:
            raise GenerateError(f"strength {recipe.strength} is not between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One click on "Paint"."""

    prompt: str
    sampling: Sampling
    negative_prompt: str = ""
    seed: int | None = None  # None: a new one
    images: int = 1
    with_source: bool = False
    image: str | None = None
    strength: float = 0.6
    mask: Image.Image | None = None  # white is painted; the rest of the image stays as it is
    adapter_weights: tuple[float, ...] | None = None  # None: those that the server was started with


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Files of a request, in order, and the seeds that they were painted with."""

    painted: list[tuple[Path, int]]
    source: list[tuple[Path, int]]
    notes: tuple[str, ...] = ()  # for people, such as a prompt that is too long


@dataclass(frozen=True, kw_only=True)
class Studio:
    """A model, perhaps its source, and a directory for pictures."""

    model: FoundModel
    painter: Painter
    source: Callable[..., list[Image.Image]] | None
    source_name: str
    defaults: Sampling
    limits: Limits
    folder: Path
    lock: threading.Lock = field(default_factory=threading.Lock)  # one model, one request at a time
    stopping: threading.Event = field(default_factory=threading.Event)

    def paint(self, request: Request, on_step: OnStep | None = None) -> Answer:
        """Paints a request.

        Raises:
            GenerateError, ArchError: it is beyond the limits or makes no sense, or the server ends.
        """
        first = random.SystemRandom().randrange(2**31) if request.seed is None else request.seed
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(8)}"  # no visitor guesses another's
        recipe = self._recipe(request, first, name)
        self.limits.check(recipe, request.images)
        check_size(self.model, recipe.sampling, free=recipe.mask is not None)
        seeds = [first + number for number in range(request.images)]

        def step(done: int, total: int) -> None:
            self._go_on()
            if on_step:
                on_step(done, total)

        notes: list[str] = []
        with self.lock, cut_prompts_said(notes.append):
            self._go_on()
            painted = list(paint_each(self.painter, _with_seeds(recipe, seeds), on_step=step))
            beside = []
            if request.with_source and self.source is not None:
                size = {"height": recipe.sampling.height, "width": recipe.sampling.width}
                beside = [self.source([recipe.prompt], [seed], **size)[0] for seed in seeds]
            self._go_on()  # the folder may be gone
            files = [path for path, _ in save(painted, self.folder / f"{name}.png", len(painted))]
            source = [self.folder / f"{name}-source-{number:04d}.png" for number in range(len(beside))]
            for image, path in zip(beside, source, strict=True):
                image.save(path)
        return Answer(
            painted=list(zip(files, seeds, strict=True)),
            source=list(zip(source, seeds[: len(source)], strict=True)),
            notes=tuple(notes),
        )

    def _recipe(self, request: Request, seed: int, name: str) -> Recipe:
        recipe = Recipe(
            prompt=request.prompt.strip(),
            seed=seed,
            sampling=request.sampling,
            negative_prompt=request.negative_prompt.strip(),
            adapters=self.painter.adapters,
        )
        if request.adapter_weights is not None:
            weights = zip(recipe.adapters, request.adapter_weights, strict=True)
            recipe = replace(recipe, adapters=tuple(replace(one, weight=weight) for one, weight in weights))
        if request.image is None:
            return recipe
        image, mask, strength = Path(request.image), None, request.strength
        if request.mask is not None:
            mask = self.folder / f"{name}-mask.png"
            width, height = open_picture(image, name="the picture").size
            request.mask.resize((width, height), Image.Resampling.NEAREST).save(mask)
            recipe = replace(recipe, sampling=replace(recipe.sampling, width=width, height=height))
        return replace(recipe, **start_from(image, mask, strength))

    def _go_on(self) -> None:
        if self.stopping.is_set():
            raise Stopped("the server is ending; ask again when it is back")

    def stop(self, patience: float = 8) -> None:
        """Let what is being painted end at its next step, so that nothing is written any more."""
        self.stopping.set()
        if self.lock.acquire(timeout=patience):
            self.lock.release()


def _with_seeds(recipe: Recipe, seeds: Sequence[int]) -> list[Recipe]:
    return [replace(recipe, seed=seed) for seed in seeds]


def load_model(options: argparse.Namespace) -> tuple[FoundModel, Painter]:
    """The model that the flags name, with its adapters."""
    model = choose_model(options.model, options.components, on_import=announce_import)
    adapters = [read_adapter(file, weight) for file, weight in options.lora]
    say(f"loading {model.name}")
    painter = load_painter(
        model,
        device=options.device,
        dtype=options.dtype,
        cpu_offload=options.cpu_offload,
        tile=options.tile,
        adapters=adapters,
    )
    return model, painter


def load_studio(options: argparse.Namespace, folder: Path, limits: Limits) -> Studio:
    """Loads the model, and its source unless it is unwanted or not at hand."""
    make_folder(folder, "choose another --output")
    source = None if options.no_source else _choose_source(options)
    model, painter = load_model(options)
    call = None
    if source:
        call = load_source(
            source, device=painter.device, dtype=painter.dtype, cpu_offload=options.cpu_offload
        )
    return Studio(
        model=model,
        painter=painter,
        source=call,
        source_name=source.path.name if source else "",
        defaults=sampling_defaults(model.directory),
        limits=limits,
        folder=folder,
    )


def _choose_source(options: argparse.Namespace) -> Source | None:
    own = find_source(options.model) if options.model else _shipped_source()
    if options.source is None:
        return own
    found = find_model(options.source)
    if found.pixel:
        raise GenerateError(f"--source {options.source} is an L2P model; give the latent one, or --no-source")
    same = own is not None and own.path.resolve() == found.directory.resolve()
    options_of_run: dict[str, Any] = dict(own.options) if own and same else {}
    return Source(path=found.directory, options=options_of_run)


def _shipped_source() -> Source:
    from l2p_mini.paths import SOURCE_MODEL

    options = {"num_inference_steps": 10, "guidance_scale": 2.0, "max_sequence_length": 32}
    return Source(path=SOURCE_MODEL, options=options)

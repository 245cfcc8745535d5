"""What the server does: checks requests, paints them one after the other, keeps the files."""

import random
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from l2p_arch.sampling.settings import Sampling
from l2p_run.pictures import open_picture
from PIL import Image

from l2p_serve.errors import ServeError
from l2p_serve.files import save
from l2p_serve.limits import Limits
from l2p_serve.painting import OnStep, Painter, cut_prompts_said, paint_each
from l2p_serve.recipe import Recipe, start_from


class Stopped(ServeError):
    """The server ends."""


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

    painter: Painter
    source: Callable[..., list[Image.Image]] | None
    source_name: str
    defaults: Sampling
    limits: Limits
    folder: Path
    lock: threading.Lock = field(default_factory=threading.Lock)  # one model, one request at a time
    stopping: threading.Event = field(default_factory=threading.Event)

    def paint(self, request: Request, on_step: OnStep | None = None) -> Answer:
        """Paint a request.

        Raises:
            ServeError, ArchError: it is beyond the limits or makes no sense, or the server ends.
        """
        first = random.SystemRandom().randrange(2**31) if request.seed is None else request.seed
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(8)}"  # no visitor guesses another's
        recipe = self._recipe(request, first, name)
        self.limits.check(recipe, request.images)
        self.painter.check(recipe)
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

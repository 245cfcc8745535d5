"""What the web page does: checks requests, paints them one after the other, keeps the files."""

import argparse
import random
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from l2p_generate.cli import check_size
from l2p_generate.errors import GenerateError
from l2p_generate.files import save
from l2p_generate.model import Sampling, Source, find_model, find_source, sampling_defaults
from l2p_generate.painting import OnStep, Painter, load_painter, load_source, paint, quiet_libraries
from l2p_generate.recipe import Recipe

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest request. The page shows it; the server enforces it, for others than the page may ask."""

    images: int = 4
    steps: int = 100
    side: int = 2048  # px
    characters: int = 4000  # of a prompt


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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Files of a request, in order, and the seeds that they were painted with."""

    painted: list[tuple[Path, int]]
    source: list[tuple[Path, int]]


@dataclass(frozen=True, kw_only=True)
class Studio:
    """A model, perhaps its source, and a directory for pictures."""

    model: Path
    painter: Painter
    source: Callable[..., list[Image.Image]] | None
    source_name: str
    defaults: Sampling
    limits: Limits
    folder: Path
    lock: threading.Lock = field(default_factory=threading.Lock)  # one model, one request at a time

    def paint(self, request: Request, on_step: OnStep | None = None) -> Answer:
        """Paints a request.

        Raises:
            GenerateError, ArchError: it is beyond the limits or makes no sense.
        """
        self.check(request)
        first = random.SystemRandom().randrange(2**31) if request.seed is None else request.seed
        seeds = [first + number for number in range(request.images)]
        start: dict[str, Any] = (
            {"image": request.image, "strength": request.strength} if request.image else {}
        )
        recipe = Recipe(
            prompt=request.prompt.strip(),
            seed=first,
            sampling=request.sampling,
            negative_prompt=request.negative_prompt.strip(),
            **start,
        )
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(8)}"  # no visitor guesses another's
        with self.lock:
            pictures = paint(self.painter, [replace(recipe, seed=seed) for seed in seeds], on_step=on_step)
            beside = []
            if request.with_source and self.source is not None:
                size = {"height": request.sampling.height, "width": request.sampling.width}
                beside = [self.source([recipe.prompt], [seed], **size)[0] for seed in seeds]
        painted = save(pictures, self.folder / f"{name}.png")
        source = [self.folder / f"{name}-source-{number:04d}.png" for number in range(len(beside))]
        for image, path in zip(beside, source, strict=True):
            image.save(path)
        return Answer(
            painted=list(zip(painted, seeds, strict=True)),
            source=list(zip(source, seeds[: len(source)], strict=True)),
        )

    def check(self, request: Request) -> None:
        """Raises for the first thing that is wrong with a request."""
        sampling, limits = request.sampling, self.limits
        if not request.prompt.strip():
            raise GenerateError("the prompt is empty; say what to paint")
        if len(request.prompt) + len(request.negative_prompt) > limits.characters:
            raise GenerateError(f"the prompt is longer than {limits.characters} characters; shorten it")
        for name, value, most in (
            ("images", request.images, limits.images),
            ("steps", sampling.num_inference_steps, limits.steps),
            ("height", sampling.height, limits.side),
            ("width", sampling.width, limits.side),
        ):
            if not 1 <= value <= most:
                raise GenerateError(f"{name} {value} is not between 1 and {most}")
        if request.seed is not None and not 0 <= request.seed <= LARGEST_SEED:
            raise GenerateError(f"seed {request.seed} is not between 0 and {LARGEST_SEED}")
        check_size(self.model, sampling.height, sampling.width)


def load_studio(
    options: argparse.Namespace, folder: Path, limits: Limits, on_import: Callable[[Path], None]
) -> Studio:
    """Loads the model, and its source unless it is unwanted or not at hand."""
    model = find_model(options.model, options.components, on_import=on_import)
    source = None if options.no_source else _choose_source(options)
    quiet_libraries()
    offload = options.cpu_offload
    painter = load_painter(
        model,
        name=options.model.name,
        device=options.device,
        dtype=options.dtype,
        cpu_offload=offload,
        tile=options.tile,
    )
    call = (
        load_source(source, device=painter.device, dtype=painter.dtype, cpu_offload=offload)
        if source
        else None
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenerateError(f"cannot write to --output {folder}: {error.strerror}") from None
    return Studio(
        model=model,
        painter=painter,
        source=call,
        source_name=source.path.name if source else "",
        defaults=sampling_defaults(model),
        limits=limits,
        folder=folder,
    )


def _choose_source(options: argparse.Namespace) -> Source | None:
    own = find_source(options.model)
    if options.source is None:
        return own
    if not (options.source / "model_index.json").is_file():
        raise GenerateError(f"--source {options.source} is no pipeline directory: it has no model_index.json")
    options_of_run: dict[str, Any] = (
        dict(own.options) if own and own.path.resolve() == options.source.resolve() else {}
    )
    return Source(path=options.source, options=options_of_run)

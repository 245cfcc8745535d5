"""A bounded queue of requests, painted in batches of one size: while a batch is painted, requests gather for
the next."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from l2p_arch.errors import ArchError
from l2p_run.progress import say
from PIL import Image

from l2p_serve.errors import ServeError
from l2p_serve.painter import Paints
from l2p_serve.painting import cut_prompts_said
from l2p_serve.recipe import Recipe


class QueueFull(ServeError):
    """As many requests wait as may."""


class Abandoned(Exception):
    """Nobody waits for any image of a batch, or the server ends."""


@dataclass(eq=False)
class Job:
    """The images of one request."""

    recipes: Sequence[Recipe]
    images: list[Image.Image | None]
    done: Future[list[Image.Image]] = field(default_factory=Future)

    def cancel(self) -> None:
        """Nobody waits any more; what is not begun will not be painted."""
        self.done.cancel()

    def keep(self, place: int, image: Image.Image) -> None:
        """Take an image; with the last one the request is done."""
        self.images[place] = image
        if all(self.images) and not self.done.done():
            self.done.set_result([image for image in self.images if image])

    def fail(self, error: Exception) -> None:
        """End the request with an error."""
        if not self.done.done():
            self.done.set_exception(error)


Unit = tuple[Job, int]
"""A request and the place of one of its images."""


@dataclass
class Counts:
    """What the queue has done since the start."""

    images: int = 0
    batches: int = 0
    painting_seconds: float = 0.0
    abandoned: int = 0


class BatchQueue:
    """One thread that paints what is asked of it.

    The oldest request always goes first; images of other requests that differ from its own in prompt and seed
    only are painted along with it.

    Args:
        painter: of this package, or your own.
        waiting: requests that may wait; more are refused.
        batch: images at once, at most.
        gather: s to wait for companions before a batch that has room.
    """

    def __init__(self, painter: Paints, *, waiting: int, batch: int, gather: float = 0.01) -> None:
        self.painter, self.waiting, self.batch, self.gather = painter, waiting, batch, gather
        self.counts = Counts()
        self._units: deque[Unit] = deque()
        self._state = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="painter", daemon=True)
        self._thread.start()

    def submit(self, recipes: Sequence[Recipe]) -> Job:
        """Queue the images of one request.

        Raises:
            QueueFull: too many requests wait.
        """
        job = Job(recipes, [None] * len(recipes))
        with self._state:
            if self._stopping:
                raise QueueFull("the server is ending; ask again when it is back")
            if self.depth >= self.waiting:
                raise QueueFull(
                    f"{self.waiting} requests are waiting, which is all that may; ask again later"
                )
            self._units.extend((job, place) for place in range(len(recipes)))
            self._state.notify()
        return job

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len({id(job) for job, _ in self._units if not job.done.done()})

    @property
    def is_alive(self) -> bool:
        """Whether requests are still painted."""
        return self._thread.is_alive()

    def stop(self, patience: float = 8) -> None:
        """End after the step that is being computed; all that wait are told."""
        with self._state:
            self._stopping = True
            for job, _ in self._units:
                job.fail(ServeError("the server is ending; ask again when it is back"))
            self._units.clear()
            self._state.notify()
        self._thread.join(patience)

    def _work(self) -> None:
        while units := self._next():
            self._paint(units)

    def _next(self) -> list[Unit]:
        """Return the next batch; empty at the end."""
        with self._state:
            while not self._stopping:
                while self._units and self._units[0][0].done.done():  # hung up meanwhile
                    self._units.popleft()
                if self._units:
                    break
                self._state.wait()
            if self._stopping:
                return []
            if len(self._alike()) < self.batch and self.gather:
                self._state.wait_for(lambda: self._stopping or len(self._alike()) >= self.batch, self.gather)
            units = self._alike()
            taken = set(map(id, units))
            self._units = deque(unit for unit in self._units if id(unit) not in taken)
            return units if not self._stopping else []

    def _alike(self) -> list[Unit]:
        """Return the oldest image and those that can be painted along with it."""
        waiting = [unit for unit in self._units if not unit[0].done.done()]
        if not waiting:
            return []
        wanted = _kind(waiting[0])
        return [unit for unit in waiting if _kind(unit) == wanted][: self.batch]

    def _paint(self, units: list[Unit]) -> None:
        def check(*_: Any) -> None:
            if self._stopping or all(job.done.done() for job, _ in units):
                raise Abandoned

        started = time.monotonic()
        try:
            check()
            recipes = [job.recipes[place] for job, place in units]
            with cut_prompts_said(lambda text: say(f"warning: {text}")):
                images = self.painter.paint(recipes, check)
        except Abandoned:
            self.counts.abandoned += len(units)
            for job, _ in units:
                job.fail(ServeError("the server is ending; ask again when it is back"))
        except Exception as error:
            self._failed(units, error)
        else:
            for (job, place), image in zip(units, images, strict=True):
                job.keep(place, image)
            self.counts.images += len(units)
            self.counts.batches += 1
        finally:
            self.counts.painting_seconds += time.monotonic() - started

    def _failed(self, units: list[Unit], error: Exception) -> None:
        """Paint a batch that failed again: each image alone, so that one request spoils no other; smaller
        batches where the memory was not enough."""
        if len(units) == 1:
            if not isinstance(error, ArchError | ServeError):
                say(f"painting failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
            units[0][0].fail(error)
            return
        if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
            self.batch = max(1, len(units) // 2)
            say(f"the memory is not enough for {len(units)} images at once; {self.batch} from now on")
        for start in range(0, len(units), self.batch):
            alone = units[start : start + self.batch]
            for part in [alone] if len(alone) < len(units) else [[unit] for unit in alone]:
                self._paint(part)


def _kind(unit: Unit) -> Recipe:
    """Return what images must have in common to be painted together."""
    job, place = unit
    return replace(job.recipes[place], prompt="", negative_prompt="", seed=0)

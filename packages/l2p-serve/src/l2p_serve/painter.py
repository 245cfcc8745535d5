"""`Paints`: what can stand behind the endpoints."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from l2p_serve.recipe import Recipe


class Paints(Protocol):
    """A painter: an L2P model (`painting.Painter`), or a class of your own.

    Its methods may raise `ArchError` or `ServeError`, whose words the client reads.
    """

    @property
    def name(self) -> str:
        """The model's name, by which clients ask for it."""

    def check(self, recipe: Recipe) -> None:
        """Refuse, before it waits in the queue, what cannot be painted, such as a size."""

    def paint(self, recipes: Sequence[Recipe], on_step: Callable[..., None]) -> list[Any]:
        """Return one PIL image of each recipe; they differ in prompt, negative prompt and seed only.

        Args:
            on_step: to be called between steps, with whatever arguments. It raises when nobody waits for
                these images any more, and that must pass through.
        """

    def signed(self, recipe: Recipe) -> Recipe:
        """Return the recipe with what painted it, as the picture's metadata will say."""

"""`Limits`: the largest request that a server takes."""

from dataclasses import dataclass

from l2p_serve.errors import ServeError
from l2p_serve.recipe import Recipe
from l2p_serve.text import check_text

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest request. The page shows it; the server enforces it, for others than the page may ask."""

    images: int = 4
    steps: int = 100
    side: int = 2048  # px
    characters: int = 4000  # of a prompt

    def check(self, recipe: Recipe, images: int) -> None:
        """Raise for the first thing of a request that is too large or makes no sense."""
        if not recipe.prompt.strip():
            raise ServeError("the prompt is empty; say what to paint")
        if len(recipe.prompt) + len(recipe.negative_prompt) > self.characters:
            raise ServeError(f"the prompt is longer than {self.characters} characters; shorten it")
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
                raise ServeError(f"{name} {value} is not between 1 and {most}")
        if not 0 <= recipe.seed <= LARGEST_SEED:
            raise ServeError(f"seed {recipe.seed} is not between 0 and {LARGEST_SEED}")
        if recipe.strength is not None and not 0 <= recipe.strength <= 1:
            raise ServeError(f"strength {recipe.strength} is not between 0 and 1")

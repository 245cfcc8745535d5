"""The joint between prompt generation and whatever writes text: a request, and one method that answers it.

Engines: `l2p_data.prompts.grammar.GrammarGenerator` (no model). An engine answers with what an LLM would
return, a JSON object such as `{"prompt": "..."}`; `l2p_data.prompts.generation` parses and judges it, so that
every engine takes the same path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from l2p_run.errors import raised_as
from l2p_run.settings import check_settings, setting

from l2p_data.errors import DataError

MOST_WEIGHT = 1e9
"""Of a category: larger ones would add up to infinity."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """A leaf of the category tree (sec. 3.2, Fig. 2b), with its share in what is generated."""

    superclass: str  # one of the paper's four: Nature, Design, People, Synthetic text
    subclass: str  # one of the paper's seventeen, or Others
    category: str  # fine-grained, concrete: "teapot"
    group: str = ""  # the level between sub-class and leaf: "pot"; empty if the source has none
    language: str = "en"  # language of the prompts to write: "en" or "zh"
    weight: float = setting(1.0, ge=0, le=MOST_WEIGHT)  # share relative to the other categories

    def __post_init__(self) -> None:
        with raised_as(DataError):
            check_settings(self, "category")

    @property
    def path(self) -> tuple[str, str, str]:
        """What identifies the category in prompt records."""
        return (self.superclass, self.subclass, self.category)


@dataclass(frozen=True, kw_only=True)
class PromptRequest:
    """One prompt to be written. Equal requests to a deterministic engine give equal answers."""

    category: Category
    seed: int  # in [0, 2**32): every random choice for this prompt derives from it
    kind: str = "detailed"  # "simple" or "detailed" (3-5 sentences), Fig. 10


@runtime_checkable
class TextGenerator(Protocol):
    """Anything that writes prompts."""

    @property
    def name(self) -> str:
        """Goes into the `created_by` column, e.g. "grammar:scenes"."""
        ...

    def generate(self, requests: Sequence[PromptRequest]) -> list[str]:
        """Return one answer per request, in order: a JSON object with the text under "prompt"."""
        ...

"""Prompts that a text encoder cuts: the rest of them was never painted, so it is said.

The pipeline's own calls of its tokenizers are watched, because how long a prompt may be, what a chat template
adds and which of several encoders counts is each pipeline's own business.
"""

from collections.abc import Iterable
from typing import Any

from l2p_data.corpus.identity import stable_id

_WORDS = 8  # of the cut part that are kept


class LongPrompts:
    """What the tokenizers of a pipeline cut, by prompt."""

    def __init__(self) -> None:
        self._cut: dict[str, dict[str, str]] = {}  # tokenizer -> text as it was tokenized -> what was lost

    def watch(self, pipeline: Any) -> None:
        """Note from now on what the pipeline's tokenizers cut."""
        for name, component in pipeline.components.items():
            if name.startswith("tokenizer") and callable(component):
                self._cut[name] = {}
                _watch(component, self._cut[name])

    def of(self, prompts: Iterable[str]) -> dict[str, str]:
        """Return for each of these prompts that no tokenizer took whole, by a hash of it: the first words it
        lost. What was noted so far is forgotten.

        A pipeline with a short CLIP encoder beside a long one has the words of the long one.
        """
        wanted = [prompt for prompt in dict.fromkeys(prompts) if prompt]
        losses = [_losses(cut, wanted) for cut in self._cut.values()]
        for cut in self._cut.values():
            cut.clear()
        return {
            stable_id("prompt", prompt): min((loss[prompt] for loss in losses), key=len)
            for prompt in wanted
            if losses and all(prompt in loss for loss in losses)
        }


def _losses(cut: dict[str, str], prompts: list[str]) -> dict[str, str]:
    """Prompt -> what a tokenizer cut of it. A template may stand around a prompt, and the longest that a text
    holds is the one it was made of."""
    found = {}
    for text, lost in cut.items():
        if owners := [prompt for prompt in prompts if prompt in text]:
            found[max(owners, key=len)] = lost
    return found


def _watch(tokenizer: Any, cut: dict[str, str]) -> None:
    """Let a tokenizer note what it cuts. Its class becomes one of its own, derived from the one it had, so
    that it stays an instance of that."""
    kind = type(tokenizer)

    def call(self: Any, text: Any = None, *arguments: Any, **options: Any) -> Any:
        result = kind.__call__(self, text, *arguments, **options)
        most = options.get("max_length") or self.model_max_length
        marked = bool(options.get("add_special_tokens", True))
        if options.get("truncation") and isinstance(text, str | list):
            for one in [text] if isinstance(text, str) else text:
                if isinstance(one, str) and one not in cut and (lost := _lost(self, kind, one, most, marked)):
                    cut[one] = lost
        return result

    tokenizer.__class__ = type(kind.__name__, (kind,), {"__call__": call})


def _lost(tokenizer: Any, kind: Any, text: str, most: int, marked: bool) -> str:
    """Return the first words of a text beyond `most` tokens; "" if it is not longer."""
    if len(text.encode()) <= most // 2:  # a token has a byte at least, and marks stand around them
        return ""
    options = {"truncation": False, "verbose": False, "add_special_tokens": marked}
    numbers = kind.__call__(tokenizer, text, **options)["input_ids"]
    if len(numbers) <= most:
        return ""
    marks = tokenizer.num_special_tokens_to_add() if marked else 0
    rest = tokenizer.decode(numbers[max(most - marks, 0) :], skip_special_tokens=True)
    return " ".join(rest.split()[:_WORDS]) or "…"

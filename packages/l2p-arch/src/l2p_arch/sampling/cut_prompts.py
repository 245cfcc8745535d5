"""Prompts that are longer than the text encoder takes: what is not read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2p_arch.families import Family

_WORDS = 8  # of what is not read, in a warning


@dataclass(frozen=True, kw_only=True)
class CutPrompt:
    """One prompt of which the end is not read."""

    prompt: str
    tokens: int
    """Of the whole prompt."""
    read: int
    """Tokens that the encoder reads."""
    lost: str
    """What it does not read."""


class CutPromptWarning(UserWarning):
    """Some prompts are longer than the text encoder takes.

    `cuts` has them all; the message has their number, and of the longest its length and first lost words.
    """

    def __init__(self, cuts: Sequence[CutPrompt], prompts: int) -> None:
        self.cuts = tuple(cuts)
        longest = max(cuts, key=lambda cut: cut.tokens)
        words = longest.lost.split()
        lost = " ".join(words[:_WORDS]) + (" ..." if len(words) > _WORDS else "")
        who = "the prompt is" if prompts == 1 else f"{len(cuts)} of {prompts} prompts are"
        super().__init__(
            f"{who} longer than the text encoder takes: {longest.tokens} tokens, of which {longest.read} are "
            f'read. Not read: "{lost}". Shorten it, or raise max_sequence_length where the model allows it'
        )


def cut_prompts(
    family: Family,
    components: Mapping[str, Any],
    prompts: Sequence[str],
    *,
    max_sequence_length: int | None = None,
    negative: bool = False,
) -> list[CutPrompt]:
    """Return those of some prompts that are not read whole, each once.

    Args:
        family: of the model.
        components: text encoders and tokenizers by name.
        prompts: as `Family.encode_text` gets them.
        max_sequence_length: as `Family.encode_text` gets it; None is the family's own.
        negative: the prompts are what guidance leads away from.
    """
    most = max_sequence_length or family.text_tokens
    tokenizer, room = family.text_room(components, most, negative)
    if tokenizer is None:
        return []
    cuts = []
    for prompt in dict.fromkeys(prompts):
        if len(prompt.encode(errors="replace")) <= room:  # a token has at least one byte
            continue
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        if len(ids) > room:
            lost = tokenizer.decode(ids[room:])
            cuts.append(CutPrompt(prompt=prompt, tokens=len(ids), read=max(room, 0), lost=lost))
    return cuts

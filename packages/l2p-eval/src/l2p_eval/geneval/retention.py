"""How much of its source's score a model keeps (sec. 4.2)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How much of its source's score a model keeps (sec. 4.2)."""

    share: float | None  # None where the source scores 0
    note: str = ""  # what is to be said of it
    odd: bool = False  # above 1 by more than chance explains


def retention(l2p: float, source: float, *, images: int | None = None) -> Retention:
    """Return a model's GenEval score over its source's.

    A share above 1 is said, not clipped: the prompts are few, or the source is not the one that it was when
    the corpus was painted. It is odd where it lies two standard errors of `images` verdicts a model above, or
    where their number is not known.

    Args:
        l2p, source: overall scores in [0, 1].
        images: of each model.
    """
    if source == 0:
        return Retention(
            share=None, note="the source scores 0, so that there is nothing to keep: look at its images"
        )
    share = l2p / source
    if share <= 1:
        return Retention(share=share)
    few = f" on {images} images" if images else ""
    more = f"L2P scores {l2p:.3f}{few}, more than its source's {source:.3f}"
    variance = max(0.0, l2p * (1 - l2p) + source * (1 - source))
    error = 2 * math.sqrt(variance / images) if images else 0.0
    if l2p - source <= error:
        return Retention(share=share, note=f"{more}, by no more than chance explains (up to {error:.3f})")
    note = f"{more}: chance, or a source that is broken or has changed; look at the source's images before"
    return Retention(share=share, note=f"{note} believing it", odd=True)

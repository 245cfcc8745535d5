"""How much of its source's score a model keeps (sec. 4.2)."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How much of its source's score a model keeps (sec. 4.2)."""

    share: float | None  # None where the source scores 0
    note: str = ""  # what is odd about it


def retention(l2p: float, source: float, *, images: int | None = None) -> Retention:
    """Return a model's GenEval score over its source's.

    A share above 1 is said, not clipped: the prompts are few, or the source is not the one that it was when
    the corpus was painted.
    """
    if source == 0:
        return Retention(
            share=None, note="the source scores 0, so that there is nothing to keep: look at its images"
        )
    share = l2p / source
    if share <= 1:
        return Retention(share=share)
    few = f" on {images} images" if images else ""
    note = (
        f"L2P scores {l2p:.3f}{few}, more than its source's {source:.3f}: chance, or a source that is broken"
        " or has changed; look at the source's images before believing it"
    )
    return Retention(share=share, note=note)

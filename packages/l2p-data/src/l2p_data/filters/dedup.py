"""Near-duplicate texts by MinHash and banding: candidates from equal bands, decided by their exact
similarity."""

import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

_PRIME = np.uint64((1 << 31) - 1)
_BANDS, _ROWS = 32, 4  # 0.8 similarity is found with probability 1 - (1 - 0.8**4)**32 > 0.9999, 0.5 with 0.87


def near_duplicates(
    texts: Sequence[str], alive: Sequence[bool], threshold: float = 0.8, *, shingle: int = 5, seed: int = 0
) -> pl.Series:
    """Return for each text whether an earlier living text is at least `threshold` similar to it.

    A text that is itself found to be a duplicate does not make others duplicates, so what stays is the first
    of each cluster, in order. Texts that are not `alive` are neither compared nor reported.

    Args:
        texts: the texts, normalised as the caller sees fit.
        alive: which of them count.
        threshold: Jaccard similarity of the sets of character shingles, in (0, 1].
        shingle: characters per shingle.
        seed: of the hash functions.
    """
    rng = np.random.default_rng(seed)
    factors = rng.integers(1, int(_PRIME), (_BANDS * _ROWS, 1), dtype=np.uint64)
    offsets = rng.integers(0, int(_PRIME), (_BANDS * _ROWS, 1), dtype=np.uint64)
    buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    shingles: dict[int, NDArray[np.uint64]] = {}
    repeated = [False] * len(texts)
    for index, (text, lives) in enumerate(zip(texts, alive, strict=True)):
        if not lives:
            continue
        own = _shingles(text, shingle)
        signature = ((factors * own + offsets) % _PRIME).min(axis=1).astype(np.uint32).reshape(_BANDS, _ROWS)
        keys = [(band, row.tobytes()) for band, row in enumerate(signature)]
        candidates = {other for key in keys for other in buckets.get(key, ())}
        if any(_jaccard(own, shingles[other]) >= threshold for other in candidates):
            repeated[index] = True
            continue
        shingles[index] = own
        for key in keys:
            buckets[key].append(index)
    return pl.Series(repeated, dtype=pl.Boolean)


def _shingles(text: str, size: int) -> NDArray[np.uint64]:
    """Return the hashes of the distinct shingles, below 2**31; a text shorter than a shingle is one
    shingle.
    """
    parts = {text[start : start + size] for start in range(max(len(text) - size, 0) + 1)}
    hashes = {zlib.crc32(part.encode("utf-8", "replace")) % int(_PRIME) for part in parts}
    return np.fromiter(hashes, dtype=np.uint64, count=len(hashes))


def _jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    common = np.intersect1d(first, second, assume_unique=True).size
    return float(common / (first.size + second.size - common))

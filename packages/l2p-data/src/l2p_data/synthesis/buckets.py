"""Resolution buckets: images of one area in several shapes, each batch of one shape."""

import math
import re
from collections.abc import Sequence

from l2p_run.sizes import Size

from l2p_data.corpus.identity import stable_seed
from l2p_data.errors import DataError, checks

#: The shapes that text-to-image models are commonly trained on.
RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))


@checks
def aspect_buckets(side: int, multiple: int = 64, ratios: Sequence[tuple[int, int]] = RATIOS) -> list[Size]:
    """Return the sizes of about `side` x `side` px in area, one per aspect ratio, in multiples of `multiple`.

    Raises:
        DataError: the multiple is larger than a side would be.
    """
    if not 1 <= side <= 1_000_000:
        raise DataError(f"a bucket of {side} px is no size; give 1 px at least and 1,000,000 at most")
    sizes = []
    for wide, tall in ratios:
        exact = side * math.sqrt(wide / tall)
        width, height = (round(length / multiple) * multiple for length in (exact, side * side / exact))
        size = Size(width=width, height=height)
        if min(size) < 1:
            raise DataError(
                f"a bucket of {side} px and shape {wide}:{tall} is below one multiple of {multiple}"
            )
        sizes.append(size)
    return list(dict.fromkeys(sizes))


def bucket_of(prompt_id: str, seed_index: int, buckets: Sequence[Size]) -> Size:
    """Return the size of an image: drawn by a hash of its identity, so that it never depends on the run."""
    return buckets[stable_seed("bucket", prompt_id, seed_index) % len(buckets)]


@checks
def parse_size(text: str) -> Size:
    """Return "1216x832" -> Size(width=1216, height=832).

    Raises:
        DataError: it is no size.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(re.fullmatch("0*[1-9][0-9]{0,5}", part) for part in parts):
        raise DataError(f"size {text[:60]!r} is not of the form WIDTHxHEIGHT, for example 1216x832")
    return Size(width=int(parts[0]), height=int(parts[1]))

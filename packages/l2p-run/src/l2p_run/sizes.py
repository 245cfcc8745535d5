"""The size of an image, by name: two numbers whose order nobody has to remember."""

import math
from collections.abc import Iterable
from typing import NamedTuple


class Size(NamedTuple):
    """Width and height in px, in this order, as in "1216x832"; arrays have their rows, the height, first."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), as an array has it."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def in_words(sizes: Iterable[Size]) -> str:
    """Return "1024x1024 px", or all of several: "1024x1024, 1152x896 px"."""
    return ", ".join(map(str, sizes)) + " px"


def nearest_shape(wanted: Size, sizes: Iterable[Size]) -> Size:
    """Return the size whose ratio of width to height is nearest to that of `wanted`."""
    ratio = math.log(wanted.width / wanted.height)
    return min(sizes, key=lambda size: abs(math.log(size.width / size.height) - ratio))

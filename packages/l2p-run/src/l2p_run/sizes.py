"""The size of an image, by name: two numbers whose order nobody has to remember."""

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

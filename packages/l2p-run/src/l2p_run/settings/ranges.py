"""What a field's number may be, said where the field is declared."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from l2p_run.errors import UserError

RANGE = "range"
"""Key of a field's metadata."""
LARGEST_SEED = 2**63 - 1
"""What every generator of torch and numpy takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number, or of each number in a list or table; None: open on that side."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def problem(self, value: float) -> str:
        """Return what a number must be and is not; "" where it is well."""
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if isinstance(value, int) and abs(value) > LARGEST_SEED:  # no library counts further
            return self.words() or "at most 2**63 - 1"
        low = (self.ge is not None and value < self.ge) or (self.gt is not None and value <= self.gt)
        high = (self.le is not None and value > self.le) or (self.lt is not None and value >= self.lt)
        return self.words() if low or high else ""

    def words(self) -> str:
        """Return the range for people: "at least 1 and below 2"."""
        sides = []
        for bound, word in (
            (self.ge, "at least"),
            (self.gt, "above"),
            (self.le, "at most"),
            (self.lt, "below"),
        ):
            if bound is not None:
                sides.append(f"{word} {'2**63 - 1' if bound == LARGEST_SEED else f'{bound:,}'}")
        return " and ".join(sides)


def setting(
    default: Any = MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    **marks: Any,
) -> Any:
    """Return a dataclass field with a range and marks.

    Args:
        default: a value, a function without arguments that makes one, or nothing for a key that must be
            given.
        marks: anything else that a reader of the field's metadata knows, such as may_change=True.
    """
    metadata = {RANGE: Range(ge=ge, gt=gt, le=le, lt=lt), **marks}
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def seed_setting(default: int = 0, **marks: Any) -> Any:
    """Return a field for a seed: what every generator takes."""
    return setting(default, ge=0, le=LARGEST_SEED, **marks)


def check_value(value: Any, bounds: Range, where: str) -> None:
    """Raise `UserError` for the first number in `value`, a list or table too, that is outside its bounds."""
    if isinstance(value, bool) or value is None or isinstance(value, str | bytes):
        return
    if isinstance(value, int | float):
        if problem := bounds.problem(value):
            raise UserError(f"{where} is {shown_number(value)}; it must be {problem}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_value(item, bounds, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_value(item, bounds, f"{where}[{index}]")


def shown_number(value: float) -> str:
    """Return a number for errors, of at most some thirty digits."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a whole number of more than {30 * (value.bit_length() // 100)} digits"
    return str(value)

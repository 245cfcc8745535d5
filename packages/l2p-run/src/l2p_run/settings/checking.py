"""Settings made in Python, held against what a file's are: types as well as ranges."""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from l2p_run.settings.ranges import RANGE, Range, check_value
from l2p_run.settings.reading import convert, options_of

_READ = (int, float, str, bool, Path, tuple, list, Sequence, dict, Mapping, type(None))
"""Types that `convert` reads; a field of another one, such as a function, is its owner's to check."""


def check_settings(settings: Any, where: str = "") -> None:
    """Raise for the first field of a dataclass that is of another type than it says, or outside its range.

    For `__post_init__`, so that settings made in Python are checked as those of a file are, and hold the same
    afterwards: a list for a tuple becomes one, a text for a path becomes a path, NumPy's numbers Python's.

    Raises:
        UserError: "KEY is VALUE; it must be a whole number", or "... at least 1".
    """
    kind: Any = type(settings)
    hints = _hints(kind)
    for one in fields(settings):
        name = f"{where}.{one.name}" if where else one.name
        given = getattr(settings, one.name)
        value = of_type(given, hints[one.name], name) if one.init else given
        check_value(value, one.metadata.get(RANGE, Range()), name)
        if value is not given:
            object.__setattr__(settings, one.name, value)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def of_type(value: Any, hint: Any, name: str) -> Any:
    """Return a value as the type of its field, itself where it is of that type already."""
    options = options_of(hint)
    if not all(is_read(option) for option in options):
        return value
    if isinstance(value, Path) and Path in options:  # also one that no file could name
        return value
    if any(
        isinstance(option, type) and is_dataclass(option) and isinstance(value, option) for option in options
    ):
        return value
    plain = _plain(value)
    converted = convert(plain, hint, name)
    unchanged = isinstance(value, Mapping) or (type(converted) is type(value) and converted == value)
    return value if unchanged else converted


def is_read(hint: Any) -> bool:
    """Return whether `convert` reads a type."""
    origin = typing.get_origin(hint)
    known = origin is typing.Literal or origin in _READ or hint in _READ
    return known or (isinstance(hint, type) and is_dataclass(hint))


def _plain(value: Any) -> Any:
    """Return numbers of other libraries, such as NumPy's, as Python's."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value

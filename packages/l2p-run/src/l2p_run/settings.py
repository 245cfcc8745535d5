"""TOML tables into frozen dataclasses and back, strictly: what cannot be meant is refused before anything
runs.

A field says its range where it is declared:

    @dataclass(frozen=True, kw_only=True)
    class Training:
        steps: int = setting(1000, ge=1)
        learning_rate: float = setting(5e-5, gt=0)
        seed: int = seed_setting()

No number may be NaN or infinite, or a whole one of more than 64 bits, whatever its range. Every error is one
line that names the key with its whole path; an unknown key names the nearest known one.
"""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from l2p_run.errors import UserError
from l2p_run.storage.addresses import is_address

T = TypeVar("T")
LARGEST_SEED = 2**63 - 1
"""What every generator of torch and numpy takes."""
_RANGE = "range"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number, or of each number in a list or table; None: open on that side."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def problem(self, value: float) -> str:
        """What a number must be and is not; "" where it is well."""
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if isinstance(value, int) and abs(value) > LARGEST_SEED:  # no library counts further
            return self.words() or "at most 2**63 - 1"
        low = (self.ge is not None and value < self.ge) or (self.gt is not None and value <= self.gt)
        high = (self.le is not None and value > self.le) or (self.lt is not None and value >= self.lt)
        return self.words() if low or high else ""

    def words(self) -> str:
        """For people: "at least 1 and below 2"."""
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
    """A dataclass field with a range and marks.

    Args:
        default: a value, a function without arguments that makes one, or nothing for a key that must be
            given.
        marks: anything else that a reader of the field's metadata knows, such as may_change=True.
    """
    metadata = {_RANGE: Range(ge=ge, gt=gt, le=le, lt=lt), **marks}
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def seed_setting(default: int = 0, **marks: Any) -> Any:
    """A field for a seed: what every generator takes."""
    return setting(default, ge=0, le=LARGEST_SEED, **marks)


def check_ranges(settings: Any, where: str = "") -> None:
    """Raise for the first number of a dataclass that is outside its field's range, or not finite.

    For `__post_init__`, so that settings made in Python are checked as those of a file are.

    Raises:
        UserError: "KEY is VALUE; it must be at least 1".
    """
    for one in fields(settings):
        bounds = one.metadata.get(_RANGE, Range())
        _check_value(getattr(settings, one.name), bounds, f"{where}.{one.name}" if where else one.name)


def _check_value(value: Any, bounds: Range, where: str) -> None:
    if isinstance(value, bool) or value is None or isinstance(value, str | bytes):
        return
    if isinstance(value, int | float):
        if problem := bounds.problem(value):
            raise UserError(f"{where} is {_number(value)}; it must be {problem}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_value(item, bounds, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_value(item, bounds, f"{where}[{index}]")


def _number(value: float) -> str:
    """A number for errors, of at most some thirty digits."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a whole number of more than {30 * (value.bit_length() // 100)} digits"
    return str(value)


# ------------------------------------------------------------------------------------------------- reading


def read_table(kind: type[T], table: Any, where: str, base: Path | None = None) -> T:
    """Fill the dataclass `kind` from a table.

    Args:
        where: name of the table in errors, for example "images"; "" for the whole of a file.
        base: folder that relative paths start from; None leaves them as they are.

    Raises:
        UserError: no table, an unknown or missing key, a wrong type, a number outside its range; and what
            `__post_init__` raises.
    """
    if not isinstance(table, Mapping):
        raise UserError(f"[{where}] must be a table of keys and values; this is {cut(table)}")
    hints = typing.get_type_hints(kind)
    known = {one.name: one for one in fields(kind) if one.init}  # type: ignore[arg-type]
    check_keys(table, known, where)
    values = {}
    for name, one in known.items():
        key = f"{where}.{name}" if where else name
        if name in table:
            value = convert(table[name], hints[name], key, base)
            _check_value(value, one.metadata.get(_RANGE, Range()), key)
            values[name] = value
        elif one.default is MISSING and one.default_factory is MISSING:
            raise UserError(f"{key} is missing; it has no default")
    return kind(**values)


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    """Raise for the first key of `table` that is not in `known`, with the nearest one that is."""
    names = list(known)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(str(key)[:200], names, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"
            raise UserError(f"unknown key {cut(f'{where}.{key}' if where else key)}; {remedy}")


def table_of(tables: Any, name: str) -> dict[str, Any]:
    """The table `name` of a file, empty where it has none; raises `UserError` where that is no table."""
    found = tables.get(name, {})
    if not isinstance(found, Mapping):
        raise UserError(f"[{name}] must be a table of keys and values; this is {cut(found)}")
    return dict(found)


def convert(value: Any, hint: Any, where: str, base: Path | None = None) -> Any:
    """One TOML or JSON value as the annotated type.

    Raises:
        UserError: it is of another type; a whole number is taken for a float, and nothing else for anything
            else.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        problems = []
        for option in arguments:
            try:
                return convert(value, option, where, base)
            except UserError as error:
                problems.append(error)
        if len(arguments) == 2 and type(None) in arguments and typing.get_origin(arguments[0]) is not tuple:
            raise problems[0]  # says more, such as that a number is not finite
    elif origin is Literal:
        for option in arguments:
            if value == option and type(value) is type(option):
                return option
    elif origin in (tuple, list):
        if isinstance(value, list | tuple):
            return _convert_list(value, origin, arguments, where, base)
    elif origin in (dict, Mapping) or hint in (dict, Mapping) or origin is types.MappingProxyType:
        if isinstance(value, Mapping):
            item = arguments[1] if len(arguments) == 2 else Any
            return {str(key): convert(one, item, f"{where}.{key}", base) for key, one in value.items()}
    elif isinstance(hint, type) and is_dataclass(hint):
        if isinstance(value, Mapping):
            return read_table(hint, value, where, base)
    elif hint is Path:
        if isinstance(value, str | Path) and str(value):
            return _convert_path(str(value), where, base)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _convert_float(value, where)
    elif hint is type(None):
        if value is None:
            return None
    elif hint in (int, str, bool) and type(value) is hint:
        if hint is str and "\0" in value:
            raise UserError(f"{where} holds a NUL character; leave that out")
        return value
    raise UserError(f"{where} is {cut(value)}; it must be {describe(hint)}")


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types that a type allows: those of a union, else itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _convert_float(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise UserError(f"{where} is {_number(value)}; it must be a finite number") from None
    if not math.isfinite(number):
        raise UserError(f"{where} is {value}; it must be a finite number")
    return number


def _convert_list(value: Sequence[Any], kind: type, arguments: Any, where: str, base: Path | None) -> Any:
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise UserError(f"{where} is {cut(value)}; it must be a list of {len(arguments)} items")
        items = zip(value, arguments, strict=True)
        return tuple(convert(v, hint, f"{where}[{i}]", base) for i, (v, hint) in enumerate(items))
    item = arguments[0] if arguments else Any
    return kind(convert(v, item, f"{where}[{i}]", base) for i, v in enumerate(value))


def _convert_path(value: str, where: str, base: Path | None) -> Path:
    if is_address(value):
        raise UserError(f"{where} is the address {value!r}; it must be a local path")
    if "\0" in value:
        raise UserError(f"{where} holds a NUL character; leave that out")
    if base is None:
        return Path(value)
    try:
        return Path(os.path.normpath((base / Path(value).expanduser()).absolute()))
    except RuntimeError as error:  # "~nobody"
        raise UserError(f"{where} is {value!r}: {error}") from None


def describe(hint: Any) -> str:
    """A type for people: "a whole number"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments if argument is not type(None))
    if origin in (tuple, list):
        item = arguments[0] if arguments else Any
        return f"a list of {describe(item).removeprefix('a ')}s" if item is not Any else "a list"
    if origin in (dict, Mapping) or (isinstance(hint, type) and is_dataclass(hint)):
        return "a table"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return f"a {names[hint]}" if hint in names and hint is not bool else names.get(hint, str(hint))


def cut(value: Any, limit: int = 120) -> str:
    """A value for errors: it may be a whole text, or too large to show."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or more digits than Python writes
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else text[: limit - 1] + "…"


# ------------------------------------------------------------------------------------------- the other way


def to_table(value: Any) -> Any:
    """A dataclass as TOML-ready values; what is None or an empty table is left out."""
    if is_dataclass(value) and not isinstance(value, type):
        items = ((one.name, to_table(getattr(value, one.name))) for one in fields(value))
        return {name: item for name, item in items if item is not None and item != {}}
    if isinstance(value, Mapping):
        return {str(key): to_table(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [to_table(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def identity_table(settings: Any) -> dict[str, Any]:
    """`to_table` for hashes that outlive a version.

    A key that carries the mark `later`, because it came after the first release, is left out at its default,
    where it means what there was before it.
    """
    table = to_table(settings)
    usual = defaults_of(type(settings))
    for name in marked(type(settings), "later"):
        if name in table and table[name] == usual.get(name):
            del table[name]
    return dict(table)


def defaults_of(kind: type) -> dict[str, Any]:
    """What a table means that leaves everything out that it may, as TOML-ready values."""
    found = {}
    for one in fields(kind):
        if one.default is not MISSING:
            found[one.name] = to_table(one.default)
        elif one.default_factory is not MISSING:
            found[one.name] = to_table(one.default_factory())
    return found


def marked(kind: type, mark: str) -> set[str]:
    """Names of the fields that carry a mark in their metadata."""
    return {one.name for one in fields(kind) if one.metadata.get(mark)}

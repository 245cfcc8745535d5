"""Tables and single values as the annotated types, or one line that names the key with its whole path."""

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
from l2p_run.settings.ranges import RANGE, Range, check_value, shown_number
from l2p_run.storage.addresses import is_address

T = TypeVar("T")


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
            check_value(value, one.metadata.get(RANGE, Range()), key)
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
    """Return the table `name` of a file, empty where it has none; raises `UserError` where that is no
    table.
    """
    found = tables.get(name, {})
    if not isinstance(found, Mapping):
        raise UserError(f"[{name}] must be a table of keys and values; this is {cut(found)}")
    return dict(found)


def convert(value: Any, hint: Any, where: str, base: Path | None = None) -> Any:
    """Return one TOML or JSON value as the annotated type.

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
    elif origin in (tuple, list, Sequence):
        if isinstance(value, list | tuple):
            if origin is Sequence:
                origin, arguments = tuple, (*arguments, Ellipsis)
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
    """Return the types that a type allows: those of a union, else itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _convert_float(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise UserError(f"{where} is {shown_number(value)}; it must be a finite number") from None
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
    """Return a type for people: "a whole number"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments if argument is not type(None))
    if origin in (tuple, list, Sequence):
        item = arguments[0] if arguments else Any
        return f"a list of {describe(item).removeprefix('a ')}s" if item is not Any else "a list"
    if origin in (dict, Mapping) or (isinstance(hint, type) and is_dataclass(hint)):
        return "a table"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return f"a {names[hint]}" if hint in names and hint is not bool else names.get(hint, str(hint))


def cut(value: Any, limit: int = 120) -> str:
    """Return a value for errors: it may be a whole text, or too large to show."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or more digits than Python writes
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else text[: limit - 1] + "…"

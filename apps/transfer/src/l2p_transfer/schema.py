"""Strict reading of TOML tables into frozen dataclasses, and back.

Every error names the key with its whole path; an unknown key names the nearest known one.
"""

import difflib
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from l2p_transfer.errors import TransferError

T = typing.TypeVar("T")


def read_table(kind: type[T], table: Mapping[str, Any], where: str, base: Path) -> T:
    """Fills the dataclass `kind` from a table.

    Args:
        where: name of the table in errors, for example "images".
        base: directory that relative paths start from.
    """
    if not isinstance(table, Mapping):
        raise TransferError(f"[{where}] must be a table, this is {table!r}")
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}  # type: ignore[arg-type]
    check_keys(table, known, where)
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise TransferError(f"{where}.{name} is missing; it has no default")
    values = {name: convert(value, hints[name], f"{where}.{name}", base) for name, value in table.items()}
    return kind(**values)


def check_keys(table: Mapping[str, Any], known: typing.Iterable[str], where: str) -> None:
    """Raises for the first key of `table` that is not in `known`."""
    names = list(known)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"
            path = f"{where}.{key}" if where else key
            raise TransferError(f"unknown key {path!r}; {remedy}")


def convert(value: Any, hint: Any, where: str, base: Path) -> Any:
    """One TOML value as the annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return convert(value, option, where, base)
            except TransferError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            item = arguments[0]
            return tuple(convert(v, item, f"{where}[{i}]", base) for i, v in enumerate(value))
    elif origin in (dict, Mapping) or hint in (dict, Mapping):
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is Path:
        if isinstance(value, str) and "://" in value:
            raise TransferError(
                f"{where} is the address {value!r}; it must be a local path (run.storage takes an address)"
            )
        if isinstance(value, str) and value:
            return Path(os.path.normpath((base / Path(value).expanduser()).absolute()))
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise TransferError(f"{where} is {value!r}; it must be {_describe(hint)}")


def to_table(value: Any) -> Any:
    """A dataclass as TOML-ready values; what is None or an empty table is left out."""
    if is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, to_table(getattr(value, field.name))) for field in fields(value))
        return {name: item for name, item in items if item is not None and item != {}}
    if isinstance(value, Mapping):
        return {str(key): to_table(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [to_table(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments if argument is not type(None))
    if origin is tuple:
        return f"a list of {_describe(arguments[0]).removeprefix('a ')}s"
    if origin in (dict, Mapping):
        return "a table"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return f"a {names[hint]}" if hint in names and hint is not bool else names.get(hint, str(hint))

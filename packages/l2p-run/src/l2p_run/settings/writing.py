"""Dataclasses as TOML-ready values, and what their fields say of themselves."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any


def to_table(value: Any) -> Any:
    """Return a dataclass as TOML-ready values; what is None or an empty table is left out."""
    if is_dataclass(value) and not isinstance(value, type):
        items = ((one.name, to_table(getattr(value, one.name))) for one in fields(value))
        return {name: item for name, item in items if item is not None and item != {}}
    if isinstance(value, Mapping):
        return {str(key): to_table(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [to_table(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def identity_table(settings: Any) -> dict[str, Any]:
    """Return `to_table` for hashes that outlive a version.

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
    """Return what a table means that leaves everything out that it may, as TOML-ready values."""
    found = {}
    for one in fields(kind):
        if one.default is not MISSING:
            found[one.name] = to_table(one.default)
        elif one.default_factory is not MISSING:
            found[one.name] = to_table(one.default_factory())
    return found


def marked(kind: type, mark: str) -> set[str]:
    """Return the names of the fields that carry a mark in their metadata."""
    return {one.name for one in fields(kind) if one.metadata.get(mark)}

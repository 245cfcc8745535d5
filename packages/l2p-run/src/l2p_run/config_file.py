"""Config files: TOML tables, what the command line overrides in them, and what differs between two of
them."""

import json
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from l2p_run.errors import UserError
from l2p_run.places import is_address, read_text, write_text
from l2p_run.settings import check_keys, convert, cut, options_of


def read_toml(path: Path, missing: str = "") -> dict[str, Any]:
    """Return the tables of a TOML file.

    Args:
        missing: the end of the error about a file that is not there, with what to give instead.

    Raises:
        UserError: it is missing, unreadable, no text, no TOML, or nested too deeply.
    """
    try:
        text = read_text(path)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"no config file {path}" + (f"; {missing}" if missing else "")) from None
        raise
    return parse_toml(text, path)


def read_extended(path: Path, missing: str = "") -> dict[str, Any]:
    """As `read_toml`, of a file whose `extends` names a file that it completes or overrides, key by key.

    Raises:
        UserError: as `read_toml`; `extends` is no name, or leads back to a file that extends this one.
    """
    return _extended(path, missing, set())


def _extended(path: Path, missing: str, seen: set[Path]) -> dict[str, Any]:
    if path in seen:
        raise UserError(f"{path} extends itself")
    tables = read_toml(path, missing)
    if (base := tables.pop("extends", None)) is None:
        return tables
    if not isinstance(base, str):
        raise UserError(f"{path}: extends is {cut(base)}; it must be the name of a file")
    return merged(_extended((path.parent / base).resolve(), missing, seen | {path}), tables)


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `change`, table by table."""
    found = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def parse_toml(text: str, where: object) -> dict[str, Any]:
    """Return the tables of TOML text; raises `UserError` where it is none, naming `where`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not valid TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read; no config is") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise UserError(f"{where} is not valid TOML: {' '.join(str(error).split())}") from None


def override(tables: dict[str, Any], text: str, kinds: Mapping[str, type], here: Path) -> None:
    """Apply "table.key=value" to the tables of a file, in place.

    Args:
        text: the value is TOML; bare text is taken as a string.
        kinds: the dataclass of each table.
        here: folder that relative paths start from.

    Raises:
        UserError: the form is another, or the table or key is not known.
    """
    key, separator, value = text.partition("=")
    table, dot, name = key.strip().partition(".")
    if not separator or not dot or not name:
        raise UserError(f"--set {cut(text)} is not of the form table.key=value, for example train.steps=500")
    check_keys({table: None}, kinds)
    current = tables.setdefault(table, {})
    if not isinstance(current, dict):
        raise UserError(f"[{table}] must be a table of keys and values; this is {cut(current)}")
    current[name] = _absolute(parse_value(value), kinds[table], name, f"{table}.{name}", here)


def parse_value(text: str) -> Any:
    """Return a TOML value, or the text itself where it is none."""
    try:
        found = tomllib.loads(f"value = {text}")
    except RecursionError:
        raise UserError(f"{cut(text)} is nested too deeply to be read") from None
    except ValueError:
        return text.strip()
    return found["value"] if len(found) == 1 else text.strip()


def _absolute(value: Any, kind: type, name: str, where: str, here: Path) -> Any:
    """Let a path that is given on the command line start from the working directory, not from the file's."""
    if (
        Path in options_of(typing.get_type_hints(kind).get(name))
        and isinstance(value, str)
        and value
        and not is_address(value)
    ):
        return str(convert(value, Path, where, here))
    return value


def differences(
    old: Mapping[str, Any],
    new: Mapping[str, Mapping[str, Any]],
    defaults: Mapping[str, Mapping[str, Any]],
    irrelevant: Iterable[tuple[str, str]] = (),
) -> Iterator[tuple[str, str, str]]:
    """Yield (table, key, "table.key: old -> new") for every setting that differs and matters.

    A setting that one side lacks has its default there: a config that an earlier version wrote knows fewer.
    """
    ignored = set(irrelevant)
    for table in new:
        before = found if isinstance(found := old.get(table, {}), Mapping) else {}
        after, usual = new[table], defaults.get(table, {})
        for key in sorted({*before, *after}):
            values = [side.get(key, usual.get(key)) for side in (before, after)]
            if values[0] != values[1] and (table, key) not in ignored:
                shown = ["nothing" if value is None else json.dumps(value, default=str) for value in values]
                yield table, key, f"{table}.{key}: {shown[0]} -> {shown[1]}"


def write_toml(path: Path, tables: Mapping[str, Any]) -> None:
    """Write tables as TOML, whole or not at all."""
    import tomli_w

    write_text(path, tomli_w.dumps(tables))

"""A function's arguments, held against what its signature says before it begins."""

import collections.abc
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from l2p_run.errors import UserError, raised_as
from l2p_run.settings.checking import is_read, of_type
from l2p_run.settings.reading import cut, describe, options_of

P = ParamSpec("P")
T = TypeVar("T")
_LISTS = (Sequence, Collection, Iterable, list, tuple)


def checked(kind: type[UserError]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator for public functions: an argument of another type than annotated is refused.

    Python takes "0" for a seed, 5.5 for a count and a text for a list of letters, and what comes of it is
    wrong without a word. Numbers, texts, paths, flags, lists of these, classes and functions are checked;
    NumPy's numbers become Python's. Ranges are the function's own to check.

    Args:
        kind: the package's error that is raised: "NAME is VALUE; it must be a whole number".
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = signature.bind(*args, **kwargs)
            with raised_as(kind):
                for name, hint in _hints(function).items():
                    if name in bound.arguments:
                        bound.arguments[name] = _argument(bound.arguments[name], hint, name)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    hints.pop("return", None)
    return hints


def _argument(value: Any, hint: Any, name: str) -> Any:
    """Return an argument as the annotated type, itself where it is of that type or nobody can tell."""
    options = options_of(hint)
    if value is None and type(None) in options:
        return None
    if Path in options and hasattr(value, "joinpath"):  # also a place in a store, `l2p_run.places.location`
        return value
    if hint is str and isinstance(value, str):  # any text: what it may hold is for the function to say
        return value
    if all(is_read(option) and not _is_looked_at(option) for option in options):
        return of_type(value, hint, name)
    wrong = [_problem(value, option, name) for option in options if option is not type(None)]
    if not all(wrong):
        return value
    raise UserError(f"{name} is {_shown(value)}; it must be {' or '.join(wrong)}")


def _is_looked_at(hint: Any) -> bool:
    """Return whether an argument must be this already, and is not read from plain values as a setting is."""
    return is_dataclass(hint) or typing.get_origin(hint) is Sequence


def _problem(value: Any, hint: Any, name: str) -> str:
    """Return what an argument must be and is not; "" where it is well or nobody can tell."""
    origin = typing.get_origin(hint) or hint
    if origin is collections.abc.Callable:
        return "" if callable(value) else "a function"
    if origin in _LISTS:
        return _list_problem(value, origin, typing.get_args(hint)[:1], name)
    if not isinstance(origin, type) or (
        getattr(origin, "_is_protocol", False) and not getattr(origin, "_is_runtime_protocol", False)
    ):
        return ""
    return "" if isinstance(value, origin) else f"a {_name(origin)}"


def _list_problem(value: Any, origin: type, items: tuple[Any, ...], name: str) -> str:
    """Return what a list must be and is not. Texts, whole numbers and dataclasses in it are looked at."""
    item = items[0] if items and (items[0] in (str, int) or is_dataclass(items[0])) else None
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, origin):
        kind = "" if item is None else f" of {describe(item)[2:] if item in (str, int) else _name(item)}s"
        return f"a list{kind}"
    if item is not None and isinstance(value, Collection):  # what can be read once is left to its reader
        for index, one in enumerate(value):
            _argument(one, item, f"{name}[{index}]")
    return ""


def _shown(value: Any) -> str:
    """Return a value for errors, a large object by its class alone."""
    plain = value is None or isinstance(value, str | bytes | int | float | type)
    return cut(value) if plain else f"a {_name(type(value))}"


def _name(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    return kind.__qualname__ if package == "builtins" else f"{package}.{kind.__qualname__}"

"""`checked`: what a signature says is held before the function begins, and nothing else is touched."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from l2p_run.errors import UserError
from l2p_run.settings import checked
from upath import UPath


class OurError(UserError):
    """A package's own."""


class Engine(Protocol):
    """No class to hold a value against."""

    def answer(self) -> str: ...


@dataclass(frozen=True)
class Leaf:
    """Something that is listed."""

    name: str = ""


@checked(OurError)
def called(
    count: int = 1,
    share: float = 1.0,
    name: str = "",
    texts: Sequence[str] = (),
    lines: Iterable[str] = (),
    leaves: Sequence[Leaf] | None = None,
    place: str | Path = "",
    flag: bool = False,
    tell: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Return what it was given."""
    return dict(locals())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": "1"}, "count is '1'; it must be a whole number"),
        ({"count": 1.5}, "count is 1.5; it must be a whole number"),
        ({"count": True}, "count is True"),
        ({"count": None}, "count is None"),
        ({"share": float("nan")}, "share is nan; it must be a finite number"),
        ({"name": 3}, "name is 3; it must be a text"),
        ({"texts": "abc"}, "texts is 'abc'; it must be a list of texts"),
        ({"texts": ["a", None]}, "texts[1] is None; it must be a text"),
        ({"lines": "abc"}, "lines is 'abc'; it must be a list of texts"),
        ({"leaves": Leaf()}, "leaves is a"),
        ({"leaves": ["a"]}, "leaves[0] is 'a'; it must be a"),
        ({"place": 3}, "place is 3; it must be a text or a path"),
        ({"flag": "no"}, "flag is 'no'; it must be true or false"),
        ({"tell": 3}, "tell is 3; it must be a function"),
    ],
)
def test_another_type_is_the_packages_own_error(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OurError) as caught:
        called(**given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_meant_is_handed_on_as_it_is() -> None:
    place, leaves, lines, engine = UPath("memory://bucket/x"), [Leaf("a")], iter(["a"]), object()
    found = called(place=place, leaves=leaves, lines=lines, engine=engine, name="\0", tell=print)
    assert found["place"] is place
    assert found["leaves"] is leaves
    assert list(found["lines"]) == ["a"]  # not read before
    assert found["engine"] is engine
    assert found["name"] == "\0"
    assert found["count"] == 1  # a default


def test_numpys_numbers_become_pythons() -> None:
    found = called(np.int64(3), np.float32(0.5))
    assert type(found["count"]) is int
    assert type(found["share"]) is float


def test_a_missing_or_unknown_argument_is_pythons_own_mistake() -> None:
    with pytest.raises(TypeError, match=r"nope"):
        called(nope=1)  # type: ignore[call-arg]

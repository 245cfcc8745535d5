"""Strategies of what people and broken programs write: numbers, texts, JSON, damaged bytes."""

import copy
import json
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = (0, -1, 1, 2, 3, 16, 64, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**23, -(2**63) - 1)
ODD_FLOATS = (
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.0,
    1e-30,
    5e-324,
    1e30,
    1.7e308,
    float("nan"),
    float("inf"),
    float("-inf"),
)
ODD_TEXTS = (
    *(
        "",
        " ",
        "0",
        "1e400",
        "nan",
        "true",
        "null",
        "None",
        ".",
        "..",
        "/",
        "/dev/null",
        "/proc/self/mem",
        "~",
    ),
    *(
        "~nobody/x",
        "a\0b",
        "\ud800",
        "\ufeff",
        "x" * 300,
        "x" * 5000,
        "s3://",
        "s3://b/c",
        "http://[::1",
        "a/b",
    ),
    *("../..", "-", "--", "=", "é", "中文", "\n", "\u202e", "a\tb", "%s", "{0}", "$HOME", "-1", "1x1", "0x0"),
)


def numbers(*, quick: bool = False) -> st.SearchStrategy[Any]:
    """Numbers that a setting may be given; `quick` ones make no accepted setting a long piece of work."""
    small = st.integers(-3, 4)
    floats = st.one_of(st.sampled_from(ODD_FLOATS), st.floats(allow_nan=True, width=64))
    if quick:
        return st.one_of(small, st.sampled_from([-1, 0, 2**64, 10**23, -(2**63) - 1]), floats)
    return st.one_of(small, st.sampled_from(ODD_NUMBERS), st.integers(), floats)


def texts() -> st.SearchStrategy[str]:
    return st.one_of(
        st.sampled_from(ODD_TEXTS), st.text(max_size=20), st.text(st.characters(codec=None), max_size=8)
    )


def json_values(*, quick: bool = False) -> st.SearchStrategy[Any]:
    """Any JSON, NaN and infinity included, as Python writes and reads them."""
    leaves = st.one_of(st.none(), st.booleans(), numbers(quick=quick), texts())
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
        ),
        max_leaves=5,
    )


def toml_values() -> st.SearchStrategy[Any]:
    """As `json_values`, without null and without what no UTF-8 file can hold."""
    whole = st.text(st.characters(codec="utf-8"), max_size=20)
    odd = st.sampled_from([text for text in ODD_TEXTS if "\ud800" not in text])
    leaves = st.one_of(st.booleans(), numbers(), whole, odd)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.text(st.sampled_from("abxy"), max_size=6), inner, max_size=3),
        ),
        max_leaves=4,
    )


@st.composite
def changed(draw: Any, document: Any, values: st.SearchStrategy[Any] | None = None) -> Any:
    """A JSON document with one to three of its values exchanged, removed or added."""
    made = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        places = list(_places(made))
        if not places:
            return draw(values if values is not None else json_values())
        holder, key = draw(st.sampled_from(places))
        kind = draw(
            st.sampled_from(["alike", "alike", "alike", "exchange", "exchange", "remove", "add", "swap"])
        )
        value = draw(values if values is not None else json_values())
        if kind == "alike":
            holder[key] = draw(_alike(holder[key], value))
        elif kind == "remove":
            del holder[key]
        elif kind == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = value
        elif kind == "swap":
            other, name = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(other[name])
        else:
            holder[key] = value
    return made


def _alike(present: Any, otherwise: Any) -> st.SearchStrategy[Any]:
    """Values of the kind that is there."""
    if isinstance(present, bool):
        return st.just(not present)
    if isinstance(present, int):
        return st.one_of(
            st.integers(0, 4), st.sampled_from([present * 2, present + 1, -present]), numbers(quick=True)
        )
    if isinstance(present, float):
        return st.one_of(st.floats(0, 4), st.sampled_from([present * 2, present / 3, -present, *ODD_FLOATS]))
    if isinstance(present, str):
        return st.sampled_from(
            [present.upper(), present + " ", present[:-1], present * 2, f"./{present}", otherwise]
        )
    if isinstance(present, list) and present:
        return st.sampled_from([present * 2, present[:-1], present[::-1], [present], [*present, otherwise]])
    return st.just(otherwise)


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    """(holder, key) of everything inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes with a few flipped, cut, inserted or repeated."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(made) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zero", "drop"]))
        if kind == "flip" and made:
            made[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del made[place:]
        elif kind == "insert":
            made[place:place] = draw(st.binary(min_size=1, max_size=12))
        elif kind == "repeat":
            made[place:place] = made[place : place + draw(st.integers(1, 64))]
        elif kind == "zero":
            length = min(draw(st.integers(1, 16)), len(made) - place)
            made[place : place + length] = bytes(length)
        else:
            del made[place : place + draw(st.integers(1, 16))]
    return bytes(made)


def damaged_text(content: bytes) -> st.SearchStrategy[bytes]:
    """A text file with damage, of another coding, nested too deeply, or something else altogether."""
    text = content.decode()
    whole = [
        *(b"", b"\0", b"\xff\xfe", b"[" * 20_000, b'{"a":' * 20_000, b"5", b"[]", b"{}", b"null", b'"x"'),
        *(text.encode("utf-16"), b"\xef\xbb\xbf" + content, text.replace("\n", "\r\n").encode(), content * 2),
        *(b"NaN", b"1" * 5000, b"\n" * 1000, content.replace(b"\n", b""), content[:-1]),
    ]
    return st.one_of(damaged(content), st.sampled_from(whole), st.binary(max_size=40))

"""Settings are strict: what no run can mean is refused in one line that names the key."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from l2p_run.config_file import differences, override, parse_toml, parse_value, read_toml, write_toml
from l2p_run.errors import UserError
from l2p_run.settings import (
    LARGEST_SEED,
    check_settings,
    defaults_of,
    marked,
    read_table,
    seed_setting,
    setting,
    to_table,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A table inside."""

    weight: float = setting(1.0, ge=0, lt=1.5)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field of every kind."""

    where: Path
    rate: float = setting(0.5, gt=0)
    count: int = setting(3, ge=1, le=10**6, may_change=True)
    seed: int = seed_setting()
    shift: float | None = setting(None, gt=0)
    widths: tuple[int, ...] = setting((1, 2), ge=1)
    pair: tuple[float, float] = (0.9, 0.999)
    mode: Literal["a", "b"] = "a"
    switch: bool = False
    amounts: Mapping[str, float] = field(default_factory=dict)
    parts: tuple[Inner, ...] = ()
    free: float = 2.0
    whole: int = 0


def read(**table: Any) -> Settings:
    return read_table(Settings, {"where": "x", **table}, "part", Path("/base"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rate", float("nan"), "finite"),
        ("rate", float("-inf"), "finite"),
        pytest.param("rate", 10**400, "finite", id="rate-huge"),
        ("rate", 0, "above 0"),
        ("rate", -1e-30, "above 0"),
        ("rate", True, "a number"),
        ("rate", "0.5", "a number"),
        ("count", 0, "at least 1"),
        ("count", 10**23, "at most 1,000,000"),
        ("count", 2.0, "a whole number"),
        ("count", False, "a whole number"),
        ("seed", -1, "at least 0"),
        ("seed", 2**63, "at most 2**63 - 1"),
        ("shift", float("inf"), "finite"),
        ("shift", 0.0, "above 0"),
        ("widths", [4, 0], "at least 1"),
        ("widths", 4, "a list of whole numbers"),
        ("pair", [0.9], "2 items"),
        ("pair", [0.9, float("nan")], "finite"),
        ("mode", "c", "one of 'a', 'b'"),
        ("mode", ["a"], "one of 'a', 'b'"),
        ("switch", 1, "true or false"),
        ("amounts", {"x": float("inf")}, "finite"),
        ("amounts", [1], "a table"),
        ("parts", [{"weight": 1.5}], "part.parts[0].weight is 1.5; it must be at least 0 and below 1.5"),
        ("parts", [{"wieght": 1.0}], "did you mean 'weight'"),
        ("parts", [5], "must be a table"),
        ("free", float("nan"), "finite"),
        ("whole", 10**23, "at most 2**63 - 1"),
        ("where", "", "a path"),
        ("where", "a\0b", "NUL"),
        ("where", "s3://bucket/x", "local path"),
        ("where", 7, "a path"),
        ("cuont", 3, "did you mean 'count'"),
        pytest.param("x" * 100_000, 3, "unknown key", id="long-key"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_in_one_line(key: str, value: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(**{key: value})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("table", [5, "text", [], None, True, 1.5])
def test_what_is_no_table_is_refused(table: Any) -> None:
    with pytest.raises(UserError, match=r"\[part\] must be a table"):
        read_table(Settings, table, "part")


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=8)
)
def test_any_value_of_any_key_is_taken_or_refused_and_never_a_traceback(value: Any) -> None:
    for key in defaults_of(Settings):
        try:
            found = read(**{key: value})
        except UserError:
            continue
        check_settings(found)


def test_good_values_are_taken_as_they_are() -> None:
    found = read(rate=1, widths=[5], amounts={"x": 2}, parts=[{"weight": 0}], seed=LARGEST_SEED, shift=3)
    assert found.rate == 1.0 and isinstance(found.rate, float) and found.widths == (5,)
    assert found.parts == (Inner(weight=0.0),) and found.seed == LARGEST_SEED and found.shift == 3.0
    assert found.where == Path("/base/x")
    assert read_table(Settings, to_table(found), "part") == found
    assert marked(Settings, "may_change") == {"count"}


def test_settings_made_in_python_are_checked_by_the_same_ranges() -> None:
    with pytest.raises(UserError, match=r"run\.rate is nan; it must be a finite number"):
        check_settings(Settings(where=Path(), rate=float("nan")), "run")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = [[[", "not valid TOML"),
        (b"a = 1\na = 2", "not valid TOML"),
        (b"a = " + b"[" * 20_000 + b"]" * 20_000, "nested too deeply"),
        (b"a = 'x\xff'", "no text in UTF-8"),
        (b"a = " + b"9" * 5_000, "not valid TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_toml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.toml", "x" * 300, "a\0b", "folder", "file.toml/config.toml"])
def test_a_path_that_is_no_readable_file_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.toml").write_text("")
    with pytest.raises(UserError) as caught:
        read_toml(Path(f"{tmp_path}/{name}"), missing="see configs/")
    assert "\n" not in str(caught.value)


def test_toml_with_a_byte_order_mark_and_foreign_line_ends_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes("\ufeffa = 1\r\nb = 'x'\r\n".encode())
    assert read_toml(path) == {"a": 1, "b": "x"}


def test_set_overrides_one_key_and_makes_paths_start_here() -> None:
    tables: dict[str, Any] = {"part": {"count": 1}}
    for text in ("part.count=5", "part.where=data/x", "part.widths=[1, 2]", "part.mode = b"):
        override(tables, text, {"part": Settings}, Path("/here"))
    assert tables["part"] == {"count": 5, "where": "/here/data/x", "widths": [1, 2], "mode": "b"}


@pytest.mark.parametrize(
    "text", ["count=3", "part=3", "part.=3", "prat.count=3", "part.count", "=", "", "." * 9]
)
def test_set_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        override({}, text, {"part": Settings}, Path("/here"))


def test_set_on_what_is_no_table_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[part\] must be a table"):
        override({"part": 5}, "part.count=3", {"part": Settings}, Path("/here"))


def test_a_value_of_set_cannot_smuggle_in_other_keys() -> None:
    assert parse_value("1\nother = 2") == "1\nother = 2"
    with pytest.raises(UserError, match="nested"):
        parse_value("[" * 20_000 + "]" * 20_000)


def test_differences_know_defaults_and_ignore_what_does_not_matter() -> None:
    old = {"part": {"count": 3}, "gone": 5}
    new = {"part": {"count": 4, "mode": "a", "switch": True}, "gone": {"x": 1}}
    found = list(differences(old, new, {"part": {"mode": "a"}}, [("part", "switch")]))
    assert found == [("part", "count", "part.count: 3 -> 4"), ("gone", "x", "gone.x: nothing -> 1")]


def test_tables_survive_the_file(tmp_path: Path) -> None:
    table = {"part": to_table(read(amounts={"a": 0.5}))}
    write_toml(tmp_path / "x.toml", table)
    assert read_toml(tmp_path / "x.toml") == table
    assert parse_toml("a = 1", "text") == {"a": 1}


@dataclass(frozen=True, kw_only=True)
class Made:
    """Settings that Python code makes."""

    steps: int = setting(10, ge=1)
    rate: float = setting(0.5, gt=0)
    kind: Literal["a", "b"] = "a"
    quick: bool | Literal["auto"] = "auto"
    names: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    place: Path | None = None
    table: Mapping[str, float] = field(default_factory=dict)
    call: Callable[[], int] | None = None

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 1.5},
        {"steps": "5"},
        {"steps": True},
        {"steps": None},
        {"rate": "0.5"},
        {"rate": True},
        {"kind": "c"},
        {"kind": None},
        {"quick": "yes"},
        {"quick": 1},
        {"names": "abc"},
        {"names": (5,)},
        {"pair": (1.0,)},
        {"pair": ("a", "b")},
        {"place": 5},
        {"table": {"a": "x"}},
        {"table": [1]},
    ],
)
def test_settings_made_in_python_are_held_against_their_types(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{next(iter(wrong))}.* is .*must be"):
        Made(**wrong)


def test_settings_made_in_python_hold_what_a_file_s_hold(tmp_path: Path) -> None:
    class Count(int):
        """As a number of another library, which is no `int` of Python's."""

    def function() -> int:
        return 1

    table = MappingProxyType({"a": 1.0})
    given: dict[str, Any] = {"steps": Count(3), "rate": 2, "names": ["x"], "pair": [1, 2]}
    given |= {"place": str(tmp_path), "table": table, "call": function}
    made = Made(**given)
    assert (made.names, made.pair, made.place) == (("x",), (1.0, 2.0), tmp_path)
    assert made.table is table and made.call is function
    assert type(made.rate) is float and made.steps == 3

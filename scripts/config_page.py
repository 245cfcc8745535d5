"""Write docs/config.md, which lists every key of a config, from the dataclasses that read it.

    uv run python scripts/config_page.py

What a key means is the comment at its field; where the code has none, or one for programmers, it stands in
scripts/config_page.toml.
"""

import ast
import dataclasses
import inspect
import io
import json
import re
import textwrap
import tokenize
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal

from l2p_data.filters.filtering import FilterRules
from l2p_train.config import TrainConfig, changeable
from l2p_transfer.config import TABLES
from l2p_transfer.runner import IRRELEVANT, MAY_CHANGE, OF_THE_CORPUS

PAGE = Path(__file__).parents[1] / "docs" / "config.md"
OF_THE_RUN = ("model", "corpus", "output", "mirror", "seed", "max_sequence_length")
"""Keys of the trainer that a transfer derives from its other tables."""

WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
TYPES = {int: "whole number", float: "number", str: "text", bool: "true, false", Path: "path"}


def page() -> str:
    """The page's text."""
    for name, words in WORDS["meanings"].items():
        known = {one.name for one in dataclasses.fields(TABLES[name])} | {"processes"}
        assert words.keys() <= known, f"config_page.toml: no keys {sorted(words.keys() - known)} in [{name}]"
    parts = [WORDS["head"]]
    for name, kind in TABLES.items():
        introduction = WORDS["introductions"].get(name) or (inspect.getdoc(kind) or "").partition("\n\n")[0]
        introduction = introduction.replace("PAPER", _paper_rules())
        keys = [one for one in _fields(kind) if name != "train" or one.name not in OF_THE_RUN]
        rows = [_row(name, kind, one) for one in keys]
        if name == "train":
            meaning = WORDS["meanings"]["train"]["processes"]
            processes = _cells("processes", 'whole number, `"auto"`', '`"auto"`', meaning, "update, early")
            rows.insert(0, processes)
        parts.append(f"## [{name}]\n\n{introduction}\n\n{_table(rows)}")
    own = [_row("train", TrainConfig, one)[:-1] for one in _fields(TrainConfig) if one.name in OF_THE_RUN]
    parts.append(f"## The trainer alone\n\n{WORDS['introductions']['alone']}\n\n{_table(own)}")
    return "\n".join(parts)


def _paper_rules() -> str:
    own, papers = (dataclasses.asdict(rules) for rules in (FilterRules(), FilterRules.paper()))
    return ", ".join(f"`{key} = {json.dumps(papers[key])}`" for key in own if own[key] != papers[key])


def _table(rows: list[list[str]]) -> str:
    head = ["key", "type", "default", "what it means", "later"][: len(rows[0])]
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _row(table: str, kind: type, one: "dataclasses.Field[Any]") -> list[str]:
    meaning = WORDS["meanings"].get(table, {}).get(one.name) or _in_toml(_comments(kind).get(one.name, ""))
    assert meaning, f"{table}.{one.name} has neither a comment nor words in config_page.toml"
    hint = typing.get_type_hints(kind)[one.name]
    return _cells(one.name, _type(hint), _default(one), meaning, _later(table, one.name))


def _cells(key: str, kind: str, default: str, meaning: str, later: str) -> list[str]:
    return [f"`{key}`", *(cell.replace("|", "\\|") for cell in (kind, default, meaning, later))]


def _later(table: str, key: str) -> str:
    if (table, key) in IRRELEVANT:
        return "free"
    if table in MAY_CHANGE or (table == "train" and key in changeable()):
        return "update"
    return "update, early" if table in ("train", "surgery", *OF_THE_CORPUS) else ""


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(argument)}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        item = _type(arguments[0])
        return f"list of {count}{item}{'s' if item.endswith(('number', 'path')) else ''}"
    return TYPES[hint] if hint in TYPES else "table" if origin in (dict, Mapping) else str(hint)


def _default(one: "dataclasses.Field[Any]") -> str:
    if one.default is MISSING and one.default_factory is MISSING:
        return "**required**"
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if value is None or value == {} or value == "" or value == ():
        return "left out"
    value = list(value) if isinstance(value, tuple) else value
    return f"`{json.dumps(value)}`"


def _in_toml(comment: str) -> str:
    """Python's None is a key that is left out; names of modules are code."""
    comment = re.sub(r"\bNone:", "left out:", comment)
    return re.sub(r"([\w/]+\.(py|toml|jsonl))\b", r"`\1`", comment)


def _fields(kind: type) -> "tuple[dataclasses.Field[Any], ...]":
    return dataclasses.fields(kind)


def _comments(kind: type) -> dict[str, str]:
    """The comment of each field: what stands in its lines, and goes on below it.

    A line below that begins a new sentence, after one that has not ended, is of what follows.
    """
    source = textwrap.dedent(inspect.getsource(kind))
    words = dict(_comment_lines(source))
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        last = node.end_lineno or node.lineno
        text = " ".join(words[line][0] for line in range(node.lineno, last + 1) if line in words)
        for line in range(last + 1, last + 9):
            below, alone = words.get(line, ("", False))
            if not text or not alone or (below[:1].isupper() and not text.endswith(".")):
                break
            text += " " + below
        found[node.target.id] = text
    return found


def _comment_lines(source: str) -> Iterator[tuple[int, tuple[str, bool]]]:
    """Each line's comment, and whether it stands alone."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            yield token.start[0], (token.string.removeprefix("#").strip(), alone)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""GenEval's prompts and what each asks for: the rows of `evaluation_metadata.jsonl`, typed and checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_run import hashes, places
from l2p_run.errors import one_line, raised_as

from l2p_eval.errors import EvalError

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six tasks, in the official order."""

RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """At least (`include`) or fewer than (`exclude`) `count` objects of `label`."""

    label: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None  # (relation, index of an earlier include)


@dataclass(frozen=True, kw_only=True)
class GenEvalPrompt:
    """One row of `evaluation_metadata.jsonl`."""

    tag: str
    prompt: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()
    kind: str = ""  # not GenEval's: a group of prompts that has a score of its own

    def to_row(self) -> dict[str, Any]:
        """Return the official JSON object of this prompt."""
        row: dict[str, Any] = {"tag": self.tag, "include": [_requirement_row(r) for r in self.include]}
        if self.exclude:
            row["exclude"] = [_requirement_row(r) for r in self.exclude]
        if self.kind:
            row["kind"] = self.kind
        return row | {"prompt": self.prompt}


def read_metadata(path: Path) -> list[GenEvalPrompt]:
    """Read `evaluation_metadata.jsonl`, one prompt a line.

    Raises:
        EvalError: the file is missing, empty or not JSON lines, or a row breaks the schema; names the line.
    """
    with raised_as(EvalError):
        if not places.is_file(path):
            raise EvalError(
                f"no metadata file {path}; give GenEval's evaluation_metadata.jsonl or one in its format"
            )
        text = places.read_text(path)
    prompts = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            prompts.append(parse_row(_json(line, f"{path}:{number}"), f"{path}:{number}"))
    if not prompts:
        raise EvalError(f"{path} has no prompts; it needs one JSON object a line")
    return prompts


def prompts_sha256(prompts: Sequence[GenEvalPrompt]) -> str:
    """Hash of the rows in order; the same whether they came from a file or from a folder of images."""
    rows = "\n".join(json.dumps(prompt.to_row(), sort_keys=True) for prompt in prompts)
    return hashes.of_bytes(rows.encode())


def parse_row(row: Any, where: str = "metadata") -> GenEvalPrompt:
    """Check one metadata object and types it. `where` begins every error."""
    if not isinstance(row, Mapping):
        raise EvalError(f"{where}: a metadata row is a JSON object, this is {type(row).__name__}")
    missing = [key for key in ("tag", "include", "prompt") if key not in row]
    if missing:
        raise EvalError(f"{where}: the row lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
    if row["tag"] not in TAGS:
        raise EvalError(f"{where}: unknown tag {row['tag']!r}; GenEval has {', '.join(TAGS)}")
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        raise EvalError(f"{where}: the prompt is empty")
    include = _requirements(row["include"], f"{where}: include")
    if not include:
        raise EvalError(f"{where}: include is empty, so that every image would be right")
    exclude = _requirements(row.get("exclude", []), f"{where}: exclude")
    kind = row.get("kind", "")
    if not isinstance(kind, str):
        raise EvalError(f'{where}: kind is {kind!r}; it must be a text, such as "seen", or absent')
    return GenEvalPrompt(tag=row["tag"], prompt=row["prompt"], include=include, exclude=exclude, kind=kind)


def _requirements(items: Any, where: str) -> tuple[Requirement, ...]:
    if not isinstance(items, list):
        raise EvalError(f"{where} is a list of objects, this is {type(items).__name__}")
    return tuple(_requirement(item, i, f"{where}[{i}]") for i, item in enumerate(items))


def _requirement(item: Any, index: int, where: str) -> Requirement:
    """Type one clause; a position may only point at a clause before `index`."""
    if not isinstance(item, Mapping) or not isinstance(item.get("class"), str):
        raise EvalError(f'{where} needs a "class", for example {{"class": "cat", "count": 1}}')
    if not item["class"].strip():
        raise EvalError(f'{where}: the "class" is empty')
    color = item.get("color")
    if color is not None and (not isinstance(color, str) or not color.strip()):
        raise EvalError(f'{where}: color is {color!r}; it must be a word, such as "red"')
    count = item.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise EvalError(f"{where}: count is {count!r}; it must be a whole number from 1")
    position = item.get("position")
    if position is None:
        return Requirement(label=item["class"], count=count, color=color)
    relation, target = position if isinstance(position, list) and len(position) == 2 else (position, None)
    if relation not in RELATIONS:
        raise EvalError(f"{where}: unknown relation {relation!r}; GenEval has {', '.join(RELATIONS)}")
    if not isinstance(target, int) or not 0 <= target < index:
        raise EvalError(
            f"{where}: position points at include {target!r}; the target must come before {index}"
        )
    return Requirement(label=item["class"], count=count, color=color, position=(relation, target))


def _requirement_row(requirement: Requirement) -> dict[str, Any]:
    row: dict[str, Any] = {"class": requirement.label, "count": requirement.count}
    if requirement.color is not None:
        row["color"] = requirement.color
    if requirement.position is not None:
        row["position"] = list(requirement.position)
    return row


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise EvalError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # more digits or brackets than Python reads
        raise EvalError(f"{where}: not JSON that can be read ({one_line(error, 80)})") from None

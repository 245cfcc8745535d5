"""New leaves for the category tree, proposed by an LLM (sec. 3.2: "we leverage an LLM to expand these
sub-classes").

The result is a TOML of additions for a person to review, and then to pass to `load_taxonomy`; nothing is
merged by itself.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from l2p_data.corpus.files import atomic_path
from l2p_data.engines.llm import Category
from l2p_data.engines.template import expansion_message
from l2p_data.errors import DataError, checks
from l2p_data.prompts.taxonomy import Taxonomy, name_key

_MAX_NAME = 45  # characters; longer names are descriptions, not categories


class Expander(Protocol):
    """Anything that answers expansion messages with `{"categories": [str, ...]}`."""

    def expand(self, messages: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Return one answer per message, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """What an LLM proposed: what is new, and what was turned down with the cause."""

    added: tuple[Category, ...]
    rejected: tuple[tuple[str, str], ...]  # name, cause

    def to_toml(self) -> str:
        """Return the additions in the taxonomy's own format."""
        groups: dict[tuple[str, str], dict[str, list[str]]] = {}
        for leaf in self.added:
            groups.setdefault((leaf.superclass, leaf.subclass), {}).setdefault(leaf.group, []).append(
                leaf.category
            )
        lines = []
        for (superclass, subclass), by_group in groups.items():
            lines.append(f"[{json.dumps(superclass)}.{json.dumps(subclass)}]")
            for group, names in by_group.items():
                lines.append(f"{_quote(group)} = [{', '.join(_quote(name) for name in names)}]")
            lines.append("")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write the additions, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_toml(), encoding="utf-8")


@checks
def expand_taxonomy(
    taxonomy: Taxonomy,
    engine: Expander,
    per_group: int,
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    batch: int = 32,
) -> Expansion:
    """Ask for `per_group` more leaves in every group of the tree.

    Args:
        taxonomy: the tree, or the part of it (`find`) that should grow.
        engine: the LLM.
        per_group: leaves wanted per group; an LLM may give fewer, and repetitions are rejected.
        seed: passed to the engine with the group's number.
        on_progress: called with groups done and groups in all.
        batch: groups asked about at a time.
    """
    if per_group < 1:
        raise DataError(f"per_group is {per_group}; ask for at least 1")
    groups: dict[tuple[str, str, str], list[Category]] = {}
    for leaf in taxonomy.categories:
        groups.setdefault((leaf.superclass, leaf.subclass, leaf.group), []).append(leaf)
    seen = {name_key(leaf.category) for leaf in taxonomy.categories}
    added: list[Category] = []
    rejected: list[tuple[str, str]] = []
    items = list(groups.values())
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        messages = [expansion_message(leaves, per_group) for leaves in part]
        answers = engine.expand(messages, [seed + start + index for index in range(len(part))])
        for leaves, answer in zip(part, answers, strict=True):
            names, problem = parse_names(answer)
            if problem is not None:
                rejected.append((leaves[0].group, problem))
            for name in names:
                cause = _cause(name, seen, leaves[0])
                if cause is None:
                    seen.add(name_key(name))
                    added.append(replace(leaves[0], category=name))
                else:
                    rejected.append((name, cause))
        if on_progress is not None:
            on_progress(min(start + batch, len(items)), len(items))
    return Expansion(added=tuple(added), rejected=tuple(rejected))


def parse_names(answer: str) -> tuple[list[str], str | None]:
    """Return an engine's answer -> names, and what is wrong with the answer if anything is."""
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError):
        return [], "answer is not JSON"
    if not isinstance(content, dict) or not isinstance(content.get("categories"), list):
        error = content.get("error") if isinstance(content, dict) else None
        return [], str(error or 'answer has no list under "categories"')
    return [" ".join(str(name).split()) for name in content["categories"]], None


def _cause(name: str, seen: set[tuple[str, ...]], sibling: Category) -> str | None:
    chinese = any("\u4e00" <= character <= "\u9fff" for character in name)
    if chinese != (sibling.language == "zh"):
        return f"not in the language of {sibling.subclass}"
    if not 2 <= len(name) <= _MAX_NAME or "," in name or not name.isprintable():
        return f"not a name of 2 to {_MAX_NAME} characters without commas"
    if name_key(name) in seen:
        return "repeats another leaf"
    return None


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

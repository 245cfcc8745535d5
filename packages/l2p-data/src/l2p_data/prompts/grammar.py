"""Prompts from a grammar instead of an LLM: templates with slots, read from a TOML file. No model, no
download."""

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_data.corpus.files import read_toml, shown
from l2p_data.corpus.identity import is_held_out
from l2p_data.engines.llm import Category, PromptRequest
from l2p_data.errors import DataError, checks

_SLOT = re.compile(r"\{([^{}]*)\}")
_TOP_KEYS = {"name", "language", "exclude_modulus", "exclude_phrases", "slots", "category"}
_CATEGORY_KEYS = {"superclass", "subclass", "category", "group", "weight", "language", "templates"}
_HELD_OUT_REDRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A checked grammar: every template's slots exist and have words enough."""

    name: str
    exclude_modulus: int | None  # prompts whose hash is 0 modulo this are held out for evaluation
    slots: Mapping[str, tuple[str, ...]]
    categories: tuple[Category, ...]
    templates: Mapping[tuple[str, str, str], tuple[str, ...]]  # by Category.path
    exclude_phrases: tuple[str, ...] = ()  # prompts with one of these, or a word that begins so, are held out

    def exclusions(self) -> list[str]:
        """Return what keeps prompts out, in words of the grammar file."""
        modulus = [f"exclude_modulus = {self.exclude_modulus}"] if self.exclude_modulus else []
        return modulus + (
            [f"exclude_phrases = {shown(self.exclude_phrases)}"] if self.exclude_phrases else []
        )

    def holds_out(self, prompt: str) -> bool:
        """Return whether a prompt is kept for evaluation: by its hash, or by what it says."""
        said = any(re.search(rf"\b{re.escape(phrase)}", prompt) for phrase in self.exclude_phrases)
        return said or is_held_out(prompt, self.exclude_modulus)


class GrammarGenerator:
    """A `TextGenerator` that fills the templates of a grammar file.

    A slot used twice in one template draws without replacement. Held-out prompts are never produced. An
    answer depends on its request and on `seed` only.
    """

    @checks
    def __init__(self, path: str | Path, seed: int = 0) -> None:
        self.grammar = load_grammar(path)
        self.seed = seed

    @property
    def name(self) -> str:
        return f"grammar:{self.grammar.name}"

    @property
    def categories(self) -> tuple[Category, ...]:
        """The grammar's categories with their weights."""
        return self.grammar.categories

    def generate(self, requests: Sequence[PromptRequest]) -> list[str]:
        return [json.dumps({"prompt": self._write(request)}, ensure_ascii=False) for request in requests]

    def _write(self, request: PromptRequest) -> str:
        templates = self.grammar.templates.get(request.category.path)
        if templates is None:
            raise DataError(
                f"grammar {self.grammar.name!r} has no category {' > '.join(request.category.path)}; "
                f"it has {', '.join(' > '.join(path) for path in self.grammar.templates)}"
            )
        rng = random.Random(f"{self.seed}:{request.seed}")
        for _ in range(_HELD_OUT_REDRAWS):
            prompt = fill(rng.choice(templates), self.grammar.slots, rng)
            if not self.grammar.holds_out(prompt):
                return prompt
        raise DataError(
            f"every prompt of category {request.category.category!r} in grammar {self.grammar.name!r} is "
            f"held out by {' or '.join(self.grammar.exclusions())}; add templates or words to it, "
            "or remove the category"
        )


def fill(template: str, slots: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Replace each `{slot}` by a word of that slot, without replacement within the template."""
    counts = Counter(_SLOT.findall(template))
    words = {slot: iter(rng.sample(slots[slot], count)) for slot, count in counts.items()}
    return _SLOT.sub(lambda match: next(words[match.group(1)]), template)


@checks
def load_grammar(path: str | Path) -> Grammar:
    """Read and check a grammar file.

    Raises:
        DataError: it is missing, no TOML, or a key, slot or value in it is wrong.
    """
    path = Path(path)
    content = read_toml(path, "grammar file")
    _check_keys(content, _TOP_KEYS, f"{path}")
    name = _text(content, "name", path)
    language = content.get("language", "en")
    slots = _read_slots(content.get("slots", {}), path)
    modulus = content.get("exclude_modulus")
    if modulus is not None and (not isinstance(modulus, int) or isinstance(modulus, bool) or modulus < 2):
        raise DataError(
            f"{path}: exclude_modulus is {modulus!r}; it must be an integer of at least 2, or absent"
        )
    phrases = content.get("exclude_phrases", [])
    if not isinstance(phrases, list) or not all(isinstance(one, str) and one.strip() for one in phrases):
        raise DataError(
            f"{path}: exclude_phrases is {shown(phrases)}; it must be a list of texts, such as "
            '["purple", "red circle"]'
        )
    entries = content.get("category", [])
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} has no [[category]]; a grammar needs at least one")
    categories: dict[tuple[str, str, str], Category] = {}
    templates: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for entry in entries:
        category, texts = _read_category(entry, language, slots, path)
        known = categories.get(category.path)
        if known is not None:  # the same leaf written as two blocks: one category with both blocks' templates
            category = Category(**{**vars(category), "weight": known.weight + category.weight})
        categories[category.path] = category
        templates[category.path] = templates.get(category.path, ()) + texts
    return Grammar(
        name=name,
        exclude_modulus=modulus,
        slots=slots,
        categories=tuple(categories.values()),
        templates=templates,
        exclude_phrases=tuple(phrases),
    )


def _read_category(
    entry: dict[str, Any], language: str, slots: Mapping[str, tuple[str, ...]], path: Path
) -> tuple[Category, tuple[str, ...]]:
    _check_keys(entry, _CATEGORY_KEYS, f"{path}, [[category]]")
    label = _text(entry, "category", path)
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight <= 1e9:
        raise DataError(
            f"{path}, category {label!r}: weight is {shown(weight)}; it must be a positive number up to 1e9"
        )
    texts = entry.get("templates")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise DataError(f"{path}, category {label!r}: templates must be a list of at least one text")
    for template in texts:
        _check_template(template, slots, f"{path}, category {label!r}, template {template!r}")
    category = Category(
        superclass=_text(entry, "superclass", path),
        subclass=_text(entry, "subclass", path),
        category=label,
        group=entry.get("group", ""),
        language=entry.get("language", language),
        weight=float(weight),
    )
    return category, tuple(texts)


def _read_slots(content: Any, path: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(content, dict):
        raise DataError(f'{path}: slots must be a table of word lists, as in [slots] color = ["red"]')
    for slot, words in content.items():
        if (
            not isinstance(words, list)
            or not words
            or not all(isinstance(word, str) and word for word in words)
        ):
            raise DataError(f"{path}: slot {slot!r} must be a list of at least one word")
        if twice := [word for word, count in Counter(words).items() if count > 1]:
            raise DataError(f"{path}: slot {slot!r} lists {twice[0]!r} twice; list each word once")
    return {slot: tuple(words) for slot, words in content.items()}


def _check_template(template: str, slots: Mapping[str, Sequence[str]], where: str) -> None:
    for slot, count in Counter(_SLOT.findall(template)).items():
        if slot not in slots:
            raise DataError(
                f"{where}: unknown slot {{{slot}}}; the grammar has {', '.join(sorted(slots)) or 'none'}"
            )
        if count > len(slots[slot]):
            raise DataError(
                f"{where}: uses {{{slot}}} {count} times, but the slot has only {len(slots[slot])} words"
            )
    if set("{}") & set(_SLOT.sub("", template)):
        raise DataError(f"{where}: has a brace without its partner")


def _check_keys(content: Any, known: set[str], where: str) -> None:
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected a table")
    if unknown := sorted(set(content) - known):
        raise DataError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(known))}")


def _text(content: Mapping[str, Any], key: str, path: Path) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{path}: {key!r} is {value!r}; it must be a text")
    return value

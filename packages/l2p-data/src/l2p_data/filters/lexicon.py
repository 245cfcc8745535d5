"""The word lists that ship with the rules, as they stand in `_words`: lower-case, punctuation as spaces."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, kw_only=True)
class SafetyLexicon:
    """Words of the safety score, lower-case, punctuation as spaces."""

    innocent: tuple[str, ...]
    terms: Mapping[float, tuple[str, ...]]  # weight -> terms


@cache
def safety_lexicon() -> SafetyLexicon:
    """Return the shipped `lexicon/safety.toml`."""
    text = resources.files("l2p_data").joinpath("lexicon/safety.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    # longest first: the leftmost match must not stop at a shorter phrase
    innocent = tuple(sorted(content["innocent"], key=len, reverse=True))
    return SafetyLexicon(innocent=innocent, terms={float(k): tuple(v) for k, v in content["terms"].items()})


@cache
def unsafe_patterns() -> list[str]:
    """Return every term of the safety lexicon, as `patterns`."""
    return [pattern for terms in safety_lexicon().terms.values() for pattern in patterns(terms)]


@cache
def brands() -> list[str]:
    """Return the shipped `lexicon/brands.txt`, as `patterns`."""
    return patterns(_phrases("brands.txt"))


def patterns(terms: Sequence[str]) -> list[str]:
    """Return terms as literals to be found in `_words`: whole words; Chinese has no spaces between them."""
    return [f" {term} " if term.isascii() else term for term in terms]


@cache
def boosters() -> list[str]:
    """Return the shipped `lexicon/boosters.txt`, as they stand in `_words`."""
    return [f" {phrase} " for phrase in _phrases("boosters.txt")]


def _phrases(name: str) -> tuple[str, ...]:
    """Return one phrase a line, lower-case, punctuation as spaces; lines that start with # are comments."""
    lines = resources.files("l2p_data").joinpath(f"lexicon/{name}").read_text(encoding="utf-8").splitlines()
    phrases = [line.strip().replace("-", " ") for line in lines if line.strip() and not line.startswith("#")]
    return tuple(dict.fromkeys(phrases))

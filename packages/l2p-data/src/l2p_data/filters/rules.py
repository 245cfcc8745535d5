"""The rules of the prompt filter (Fig. 10, 11): boolean polars expressions over a frame of prompts.

`with_helper_columns` adds the columns they read: `_lower`, `_outside` (lower-case, without what stands in
double quotes) and `_words` (lower-case words between single spaces). A rule that costs more than a scan has a
gate: a cheap expression that holds wherever the rule can, so that the rule itself sees few rows.
"""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from l2p_data.filters.lexicon import boosters, brands, patterns, safety_lexicon, unsafe_patterns
from l2p_data.filters.rule_patterns import (
    ANNOUNCES,
    ANNOUNCES_GATE,
    BARE_TEXT,
    CHATTER,
    CHATTER_GATE,
    ENGLISH_WORDS,
    FOREIGN,
    HAN,
    LATIN,
    MARKUP,
    MARKUP_GATE,
    OTHER_WORDS,
    PERSON_READS,
    QUOTED,
    QUOTED_TEXT,
)

if TYPE_CHECKING:
    from l2p_data.filters.filtering import FilterRules


def with_helper_columns(prompts: pl.DataFrame) -> pl.DataFrame:
    """Add the columns that the rules read.

    `_lower`; `_outside`: lower-case, without what stands in double quotes; `_exotic`: its characters beyond
    ASCII; `_han`: how many of them are Chinese; `_words`: lower-case words between single spaces.
    """
    frame = prompts.with_columns(pl.col("prompt").fill_null("").str.to_lowercase().alias("_lower"))
    lower = pl.col("_lower")
    frame = frame.with_columns(
        lower.str.replace_all(QUOTED, " ").alias("_outside"),
        _plain_words(lower).alias("_words"),
        pl.lit("").alias("_exotic"),
        pl.lit(0.0).alias("_han"),
    )
    exotic = pl.col("_outside").str.replace_all(r"[\x00-\x7F]+", "")
    beyond_ascii = lower.str.len_bytes() != lower.str.len_chars()
    frame = _refine(frame, beyond_ascii, _exotic=exotic, _han=exotic.str.count_matches(HAN).cast(pl.Float64))
    irregular = beyond_ascii | pl.col("_words").str.contains("  ", literal=True)
    return _refine(frame, irregular, _words=_words(lower))


def _refine(frame: pl.DataFrame, where: pl.Expr, **columns: pl.Expr) -> pl.DataFrame:
    """Compute columns anew for the rows where `where` holds."""
    rows = frame.select(where).to_series().arg_true()
    if rows.is_empty():
        return frame
    values = frame[rows].select(**columns)
    return frame.with_columns(frame[name].scatter(rows, values[name]) for name in columns)


def _words(text: pl.Expr) -> pl.Expr:
    """Lower-case text as words between single spaces, a space at each end: " a red circle "."""
    return pl.concat_str(
        pl.lit(" "), text.str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars(), pl.lit(" ")
    )


def _plain_words(text: pl.Expr) -> pl.Expr:
    """Return `_words` of ASCII text in a third of the time; longer runs of punctuation leave two spaces in a
    row.
    """
    marks = [chr(code) for code in range(128) if chr(code) not in string.ascii_letters + string.digits + " "]
    shapes = [f" {mark} " for mark in marks] + [f"{mark} " for mark in marks] + [f" {mark}" for mark in marks]
    plain = text.str.replace_many(dict.fromkeys(shapes + marks, " "), leftmost=True).str.strip_chars()
    return pl.concat_str(pl.lit(" "), plain, pl.lit(" "))


def _answer(rules: "FilterRules") -> pl.Expr:
    return pl.col("problem").is_not_null()


def _empty(rules: "FilterRules") -> pl.Expr:
    return pl.col("_words").str.strip_chars() == ""


def _control_characters(rules: "FilterRules") -> pl.Expr:
    return pl.col("prompt").str.contains(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u{FFFD}\u{200B}-\u{200F}\u{202A}-\u{202E}&&[^\u{200D}]]"
    )


def _format(rules: "FilterRules") -> pl.Expr:
    return pl.col("_lower").str.contains(MARKUP)


def _chatter(rules: "FilterRules") -> pl.Expr:
    return pl.col("_lower").str.contains(CHATTER)


def _is_zh() -> pl.Expr:
    return pl.col("language") == "zh"


def _too_short(rules: "FilterRules") -> pl.Expr:
    shortest = pl.when(_is_zh()).then(rules.min_characters_zh).otherwise(rules.min_characters)
    return pl.col("prompt").str.len_chars() < shortest


def _too_long(rules: "FilterRules") -> pl.Expr:
    return pl.col("prompt").str.len_chars() > rules.max_characters


def _language(rules: "FilterRules") -> pl.Expr:
    outside, exotic, han = pl.col("_outside"), pl.col("_exotic"), pl.col("_han")
    foreign = exotic.str.count_matches(FOREIGN).cast(pl.Float64)
    ascii_characters = (outside.str.len_chars() - exotic.str.len_chars()).cast(pl.Float64)
    # One Chinese character carries about as much as three Latin letters.
    chinese = 3.0 * han / (3.0 * han + 0.8 * ascii_characters + foreign)
    english = ascii_characters / (ascii_characters + 3.0 * (han + foreign))
    words = pl.col("_words")
    other_latin = words.str.contains_any(OTHER_WORDS) & ~words.str.contains_any(ENGLISH_WORDS)
    other_latin &= words.str.extract_many(OTHER_WORDS, overlapping=True).list.len() >= 2
    not_chinese = (pl.col("language") == "zh") & (chinese < 0.5)
    not_english = (pl.col("language") == "en") & ((english < 0.8) | other_latin)
    return not_chinese | not_english


def _tag_soup(rules: "FilterRules") -> pl.Expr:
    outside = pl.col("_outside")
    separators = outside.str.count_matches(r"[,，、;|]").cast(pl.Float64)
    sentences = outside.str.count_matches(r"[.!?。！？](?:\s|$|\p{Han})").cast(pl.Float64)
    words = (pl.col("_words").str.count_matches(" ", literal=True) - 1).cast(pl.Float64)
    segments = separators + sentences + 1
    listed = ~_is_zh() & (separators >= 4) & (words / segments < 2.8) & (separators / (sentences + 1) >= 4)
    han = pl.col("_han")
    listed_zh = _is_zh() & (separators >= 5) & (han / segments < 4.5) & (sentences <= 1)
    praise = pl.col("_words").str.extract_many(boosters(), overlapping=True).list.len()
    return (
        listed
        | listed_zh
        | (praise >= 3)
        | ((praise >= 2) & (words < 20))
        | outside.str.contains(r"\bmasterpiece\s*,")
    )


def _sentence(rules: "FilterRules") -> pl.Expr:
    if not rules.require_sentence:
        return pl.lit(False)
    return ~pl.col("prompt").str.contains(r"[.!?。！？…][\"”」』’)]?\s*$")


def _quotes_unbalanced(rules: "FilterRules") -> pl.Expr:
    text = pl.col("prompt")
    # 24" or 7 1/2" is a measure, not a quote
    straight = text.str.replace_all(r"\d\"(?:\s|[,.;x×-]|$)", " ").str.count_matches('"', literal=True)
    straight = pl.when(text.str.count_matches('"', literal=True) % 2 == 0).then(0).otherwise(straight)
    pairs = [("“", "”"), ("「", "」"), ("『", "』")]
    uneven = [
        text.str.count_matches(a, literal=True) != text.str.count_matches(b, literal=True) for a, b in pairs
    ]
    return (straight % 2 == 1) | pl.any_horizontal(*uneven) | text.str.contains(r'^\s*"[^"]*"\s*$')


def _quotes_empty(rules: "FilterRules") -> pl.Expr:
    return pl.col("prompt").str.contains(r'(?:^|[\s:：,，])"\s*"|“\s*”|「\s*」')


def _text_not_quoted(rules: "FilterRules") -> pl.Expr:
    announced = pl.col("_outside").str.replace_all(PERSON_READS, " ").str.contains(ANNOUNCES)
    no_quotes = ~pl.col("prompt").str.contains(QUOTED_TEXT)
    return no_quotes & (announced | pl.col("prompt").str.contains(BARE_TEXT))


def _text_missing(rules: "FilterRules") -> pl.Expr:
    quoted = pl.col("prompt").str.extract_all(QUOTED_TEXT).list.join(" ")
    needed = pl.col("subclass").is_in(list(rules.required_text_subclasses))
    script = (
        pl.when(pl.col("subclass") == "Chinese Text")
        .then(quoted.str.contains(HAN))
        .when(pl.col("subclass") == "English Text")
        .then(quoted.str.contains(LATIN))
        .otherwise(quoted != "")
    )
    return needed & ~script


def _unsafe(rules: "FilterRules") -> pl.Expr:
    return safety_score() >= rules.unsafe_score


def safety_score() -> pl.Expr:
    """Sum of the weights of the lexicon's terms in a prompt (each term once), innocent phrases cut out
    first."""
    lexicon = safety_lexicon()
    words = pl.col("_words").str.replace_many({f" {phrase} ": " " for phrase in lexicon.innocent})
    scores = []
    for weight, terms in lexicon.terms.items():
        # neighbouring terms share a space
        scores.append(words.str.extract_many(patterns(terms), overlapping=True).list.n_unique() * weight)
    return pl.sum_horizontal(*scores)


def _brand(rules: "FilterRules") -> pl.Expr:
    return pl.col("_words").str.contains_any(brands())


def _listed_words() -> pl.Expr:
    """Return one scan for the words of several rules. Polars shares it between them."""
    words = [*unsafe_patterns(), *brands(), *boosters(), *OTHER_WORDS]
    return pl.col("_words").str.contains_any(words)


def _exotic() -> pl.Expr:
    return pl.col("_exotic") != ""


def _quotes() -> pl.Expr:
    return pl.col("prompt").str.contains(r'["“”「」『』]')


def _announced() -> pl.Expr:
    announced = pl.col("_lower").str.contains(ANNOUNCES_GATE)
    return announced & ~pl.col("prompt").str.contains(QUOTED_TEXT)


def _lists() -> pl.Expr:
    """Enough commas, praise, or a masterpiece."""
    return (
        (pl.col("_outside").str.count_matches(r"[,，、;|]") >= 4)
        | _listed_words()
        | pl.col("_outside").str.contains("masterpiece", literal=True)
    )


@dataclass(frozen=True)
class Rule:
    """When a prompt is to be dropped.

    Attributes:
        test: true for what is to be dropped.
        gate: true wherever `test` can be, and cheaper; None where `test` is cheap itself.
    """

    test: Callable[["FilterRules"], pl.Expr]
    gate: Callable[[], pl.Expr] | None = None


#: reason -> rule, in the order in which they name the reason.
RULES: Mapping[str, Rule] = {
    "answer": Rule(_answer),  # the engine's answer was no valid record
    "empty": Rule(_empty),
    "control-characters": Rule(_control_characters),
    "chatter": Rule(_chatter, lambda: pl.col("_lower").str.contains(CHATTER_GATE)),  # about the task
    "format": Rule(_format, lambda: pl.col("_lower").str.contains(MARKUP_GATE)),  # markup, parameters
    "too-short": Rule(_too_short),
    "too-long": Rule(_too_long),
    "language": Rule(_language, lambda: _exotic() | _is_zh() | _listed_words()),
    "quotes-unbalanced": Rule(_quotes_unbalanced, _quotes),
    "quotes-empty": Rule(_quotes_empty, _quotes),
    # text to be rendered must stand in double quotes (Fig. 10, 11)
    "text-not-quoted": Rule(_text_not_quoted, _announced),
    # posters, slides, UI and the text classes must say what is written
    "text-missing": Rule(_text_missing),
    "tag-soup": Rule(_tag_soup, _lists),
    "not-a-sentence": Rule(_sentence),
    "unsafe": Rule(_unsafe, _listed_words),
    "brand": Rule(_brand, _listed_words),
}

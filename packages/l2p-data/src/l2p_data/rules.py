"""The rules of the prompt filter (Fig. 10, 11), each one a boolean polars expression over a frame of prompts.

`filters.filter_prompts` adds the helper columns they read: `_text`, `_lower`, `_outside` (lower-case,
without what stands in double quotes) and `_words` (lower-case words between single spaces).
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from l2p_data.filters import FilterRules

QUOTED = r'"[^"]*"|“[^”]*”|「[^」]*」|『[^』]*』'
_QUOTED_TEXT = r'"\s*[^"\s][^"]*"|“\s*[^”\s][^”]*”|「[^」]+」|『[^』]+』'
_MARKUP = (
    r"^\s*(?:[{\[#>*]|```|[-•]\s|\d+[.)]\s)"  # JSON, markdown, list items
    r"|[\r\n]\s*[\r\n]|</?[a-z][^>]*>|\*\*|\\n"
    r"|--(?:ar|v|style|stylize|no|q|s)\b|\(\S[^()]*:\d+(?:\.\d+)?\)|<lora:"  # parameters of image tools
    r"|\b(?:scene|camera|lighting|mood|style|subject|setting|composition|background)\s*:[^:]*"
    r"\b(?:camera|lighting|mood|style|setting|composition|background)\s*:"  # a form that was filled in
    r"|^\s*(?:prompt|image prompt|description|caption|title|id|提示词|描述)\s*[:：]"
)
_CHATTER = (
    r"^\s*[\"“']?(?:sure[,!.]|certainly[,!.]|of course[,!.]|okay[,!.]|here(?:'s| is| are)\b.*:|i(?:'m"
    r"| am) sorry|sorry[,!.]"
    r"|as an ai\b|i can(?:not|'t|’t)\b|i(?:'m| am) unable|i apologi[sz]e|unfortunately, i\b|抱歉|对不起"
    r"|好的[，,]|作为(?:一个)?(?:ai|人工智能))"
    r"|\b(?:as a language model|the user (?:wants|asks|requested)|i hope this helps|let me know if)\b"
)
# Phrases that announce text in the image. "Reading" or "says" alone would catch people, so a thing that
# bears text precedes; what plainly is a person's reading or speaking is cut out first.
_PERSON_READS = (
    r"\b(?:read(?:s|ing)?|say(?:s|ing)?|spell(?:s|ing)?) (?:(?:a|an|the|his|her|their|my|some|nothing|aloud"
    r"|goodbye|hello|grace|prayers?|quietly|silently|to|in|at|by"
    r"|on|with|under|from|while|about|books?|news|newspapers?|comics|room|glasses|lamp|chair|nook"
    r"|light|corner|area|desk|table|list)\b|[.,;])"
)
_BEARER = (
    r"(?:signs?|signboards?|boards?|blackboard|whiteboard|chalkboard|banners?|posters?|billboards?"
    r"|labels?|headlines?|slogan|title|subtitle|"
    r"caption|inscription|buttons?|badge|logo|stickers?|plaque|screen|menu|notes?|cards?|t-shirt"
    r"|shirt|placards?|tags?|cover|marquee|neon|text|"
    r"graffiti|doormat|mat|slip|words?|lettering|letters|tagline|heading|ticket|envelope|plate|flag|mug|cap|tombstone"
    r"|gravestone|flyer|slide|display|paper)"
)
_ANNOUNCES = (
    rf"\b{_BEARER}\b[^.!?\"“]{{0,40}}?\b(?:reads?|reading|says?|saying|spelling|spells|stating|states"
    rf"|proclaims?|proclaiming)\b"
    r"|\b(?:with|bearing|displaying|showing|displays|shows|bears) the (?:words?|text|title|headline"
    r"|slogan|inscription|message|phrase)\b"
    r"|\b(?:is|are|poster|book|slide|film|painting|album|menu|chart|cover) (?:titled|entitled"
    r"|captioned)\b"
    r"|\b(?:inscribed|emblazoned|lettered|printed) with the words?\b"
    r"|写着|写有|印着|标题为|刻着|上书|题字为"
)
# Text in any other kind of quotes.
_BARE_TEXT = r"(?:[\s:：,，])(?:'[^']{2,}'|‘[^’]{2,}’|`[^`]{2,}`|«[^»]{2,}»)(?:[\s.,;:!?。，]|$)"
_HAN = r"\p{Han}"
_LATIN = r"[A-Za-z]"
_FOREIGN = (
    r"[\p{Cyrillic}\p{Arabic}\p{Hangul}\p{Hiragana}\p{Katakana}\p{Thai}\p{Devanagari}\p{Hebrew}\p{Greek}]"
)
_ENGLISH_WORDS = [
    f" {word} " for word in ("the", "of", "with", "and", "is", "are", "its", "on", "by", "from", "at")
]
_OTHER_WORDS = [
    f" {word} "
    for words in (
        ("le", "la", "les", "des", "du", "une", "sur", "avec", "dans", "et"),
        ("der", "das", "und", "ein", "eine", "auf", "mit", "dem", "den"),
        ("el", "los", "las", "una", "con", "y", "del", "il", "di", "che", "sul", "nel"),
        ("com", "uma", "em", "na", "het", "een", "op", "met", "och", "ett", "jest", "się"),
    )
    for word in words
]


def with_helper_columns(prompts: pl.DataFrame) -> pl.DataFrame:
    """Add the columns that the rules read.

    `_lower`; `_outside`: lower-case, without what stands in double quotes; `_exotic`: its characters beyond
    ASCII; `_han`: how many of them are Chinese; `_words`: lower-case words between single spaces.
    """
    text = pl.col("prompt").fill_null("")
    outside = pl.col("_outside")
    return (
        prompts.with_columns(
            text.str.to_lowercase().alias("_lower"),
            text.str.replace_all(QUOTED, " ").str.to_lowercase().alias("_outside"),
        )
        .with_columns(
            _words(pl.col("_lower")).alias("_words"),
            outside.str.replace_all(r"[\x00-\x7F]+", "").alias("_exotic"),
        )
        .with_columns(pl.col("_exotic").str.count_matches(_HAN).cast(pl.Float64).alias("_han"))
    )


def _words(text: pl.Expr) -> pl.Expr:
    """Lower-case text as words between single spaces, a space at each end: " a red circle "."""
    return pl.concat_str(
        pl.lit(" "), text.str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars(), pl.lit(" ")
    )


def _answer(rules: "FilterRules") -> pl.Expr:
    return pl.col("problem").is_not_null()


def _empty(rules: "FilterRules") -> pl.Expr:
    return pl.col("_words").str.strip_chars() == ""


def _control_characters(rules: "FilterRules") -> pl.Expr:
    return pl.col("prompt").str.contains(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u{FFFD}\u{200B}-\u{200F}\u{202A}-\u{202E}&&[^\u{200D}]]"
    )


def _format(rules: "FilterRules") -> pl.Expr:
    return pl.col("_lower").str.contains(_MARKUP)


def _chatter(rules: "FilterRules") -> pl.Expr:
    return pl.col("_lower").str.contains(_CHATTER)


def _is_zh() -> pl.Expr:
    return pl.col("language") == "zh"


def _too_short(rules: "FilterRules") -> pl.Expr:
    shortest = pl.when(_is_zh()).then(rules.min_characters_zh).otherwise(rules.min_characters)
    return pl.col("prompt").str.len_chars() < shortest


def _too_long(rules: "FilterRules") -> pl.Expr:
    return pl.col("prompt").str.len_chars() > rules.max_characters


def _language(rules: "FilterRules") -> pl.Expr:
    outside, exotic, han = pl.col("_outside"), pl.col("_exotic"), pl.col("_han")
    foreign = exotic.str.count_matches(_FOREIGN).cast(pl.Float64)
    ascii_characters = (outside.str.len_chars() - exotic.str.len_chars()).cast(pl.Float64)
    # One Chinese character carries about as much as three Latin letters.
    chinese = 3.0 * han / (3.0 * han + 0.8 * ascii_characters + foreign)
    english = ascii_characters / (ascii_characters + 3.0 * (han + foreign))
    words = pl.col("_words")
    other_latin = words.str.contains_any(_OTHER_WORDS) & ~words.str.contains_any(_ENGLISH_WORDS)
    other_latin &= words.str.extract_many(_OTHER_WORDS, overlapping=True).list.len() >= 2
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
    announced = pl.col("_outside").str.replace_all(_PERSON_READS, " ").str.contains(_ANNOUNCES)
    no_quotes = ~pl.col("prompt").str.contains(_QUOTED_TEXT)
    return no_quotes & (announced | pl.col("prompt").str.contains(_BARE_TEXT))


def _text_missing(rules: "FilterRules") -> pl.Expr:
    quoted = pl.col("prompt").str.extract_all(_QUOTED_TEXT).list.join(" ")
    needed = pl.col("subclass").is_in(list(rules.required_text_subclasses))
    script = (
        pl.when(pl.col("subclass") == "Chinese Text")
        .then(quoted.str.contains(_HAN))
        .when(pl.col("subclass") == "English Text")
        .then(quoted.str.contains(_LATIN))
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
        latin = [f" {term} " for term in terms if term.isascii()]
        # Chinese has no spaces between words, so its terms match anywhere; extract_many finds overlapping
        # ends too
        patterns = latin + [term for term in terms if not term.isascii()]
        found = words.str.extract_many(patterns, overlapping=True).list.n_unique()
        scores.append(pl.when(words.str.contains_any(patterns)).then(found).otherwise(0) * weight)
    return pl.sum_horizontal(*scores)


def _brand(rules: "FilterRules") -> pl.Expr:
    latin = [f" {name} " for name in brands() if name.isascii()]
    return pl.col("_words").str.contains_any(latin + [name for name in brands() if not name.isascii()])


Rule = Callable[["FilterRules"], pl.Expr]
#: reason -> rule, in the order in which they name the reason.
RULES: Mapping[str, Rule] = {
    "answer": _answer,  # the engine's answer was no valid record
    "empty": _empty,
    "control-characters": _control_characters,
    "chatter": _chatter,  # the model talks about the task, or refuses it
    "format": _format,  # markup, lists, parameters of image tools
    "too-short": _too_short,
    "too-long": _too_long,
    "language": _language,
    "quotes-unbalanced": _quotes_unbalanced,
    "quotes-empty": _quotes_empty,
    "text-not-quoted": _text_not_quoted,  # text to be rendered must stand in double quotes (Fig. 10, 11)
    "text-missing": _text_missing,  # posters, slides, UI and the text classes must say what is written
    "tag-soup": _tag_soup,
    "not-a-sentence": _sentence,
    "unsafe": _unsafe,
    "brand": _brand,
}


@dataclass(frozen=True, kw_only=True)
class SafetyLexicon:
    """Words of the safety score, lower-case, punctuation as spaces."""

    innocent: tuple[str, ...]
    terms: Mapping[float, tuple[str, ...]]  # weight -> terms


@cache
def safety_lexicon() -> SafetyLexicon:
    """The shipped `lexicon/safety.toml`."""
    text = resources.files("l2p_data").joinpath("lexicon/safety.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    # longest first: the leftmost match must not stop at a shorter phrase
    innocent = tuple(sorted(content["innocent"], key=len, reverse=True))
    return SafetyLexicon(innocent=innocent, terms={float(k): tuple(v) for k, v in content["terms"].items()})


@cache
def brands() -> tuple[str, ...]:
    """The shipped `lexicon/brands.txt`."""
    return _phrases("brands.txt")


@cache
def boosters() -> list[str]:
    """The shipped `lexicon/boosters.txt`, as they stand in `_words`."""
    return [f" {phrase} " for phrase in _phrases("boosters.txt")]


def _phrases(name: str) -> tuple[str, ...]:
    """One phrase a line, lower-case, punctuation as spaces; lines that start with # are comments."""
    lines = resources.files("l2p_data").joinpath(f"lexicon/{name}").read_text(encoding="utf-8").splitlines()
    phrases = [line.strip().replace("-", " ") for line in lines if line.strip() and not line.startswith("#")]
    return tuple(dict.fromkeys(phrases))

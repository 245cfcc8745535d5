"""Prompt -> keep, or drop with a reason (sec. 3.2, "Automated Prompt Filtering", Fig. 11): the rules, as polars expressions.

Each rule is one boolean expression over the whole frame; the first that holds names the reason. A dropped row stays in
the frame, so that what was lost, and why, can be counted and looked at.
"""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import polars as pl

from l2p_data.errors import DataError
from l2p_data.prompts import check_prompts

#: Sub-classes whose prompts must say, in double quotes, what is written in the image (Fig. 10).
TEXT_SUBCLASSES = ("Posters", "Slides", "UI", "English Text", "Chinese Text")


@dataclass(frozen=True, kw_only=True)
class FilterRules:
    """Which rules apply, and how strictly. The defaults let short but well-formed prompts pass."""

    min_characters: int = 3
    max_characters: int = 2000
    min_characters_zh: int = 2  # a Chinese character says about what three Latin ones do
    require_sentence: bool = False  # the prompt must end like a sentence
    max_opener_share: float | None = None  # share of the prompts that may start with the same three words
    min_opener_count: int = 20  # an opener is never "repeated too often" below this many prompts
    unsafe_score: float = 1.0  # drop at this safety score; see lexicon/safety.toml for the weights
    brands: bool = True
    required_text_subclasses: tuple[str, ...] = TEXT_SUBCLASSES
    near_duplicates: bool = False  # MinHash over the prompts that pass everything else; needs l2p-data[dedup]
    near_duplicate_threshold: float = 0.8  # Jaccard similarity of 5-character shingles
    disabled: tuple[str, ...] = ()  # reasons to leave out, e.g. ("tag-soup",)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.disabled) - set(REASONS)):
            raise DataError(f"disabled rule {unknown[0]!r} does not exist; the rules are {', '.join(REASONS)}")
        if not 0 <= self.min_characters <= self.max_characters:
            raise DataError(f"prompt length bounds {self.min_characters}..{self.max_characters} are empty")

    @classmethod
    def paper(cls, **changes: object) -> "FilterRules":
        """The paper's length target, 200-350 characters (Fig. 2c), and complete sentences (Fig. 10)."""
        strict = cls(
            min_characters=200, max_characters=350, min_characters_zh=60, require_sentence=True, max_opener_share=0.05
        )
        return dataclasses.replace(strict, **changes)  # type: ignore[arg-type]


def filter_prompts(prompts: pl.DataFrame, rules: FilterRules | None = None) -> pl.DataFrame:
    """Judge every prompt; add `status` ("keep" or "drop") and `reason` (null if kept). No row is removed.

    Judging a frame again replaces the earlier verdict, so rules can be changed and re-applied.
    """
    check_prompts(prompts)
    rules = rules or FilterRules()
    text = pl.col("prompt").fill_null("")
    frame = prompts.with_columns(
        text.alias("_text"),
        text.str.to_lowercase().alias("_lower"),
        text.str.replace_all(_QUOTED, " ").str.to_lowercase().alias("_outside"),  # without what is to be rendered
    ).with_columns(_words(pl.col("_lower")).alias("_words"))
    tests = [
        pl.when(test(rules)).then(pl.lit(reason))
        for reason, test in RULES.items()
        if reason not in rules.disabled and (test is not _brand or rules.brands)
    ]
    frame = frame.with_columns(pl.coalesce(*tests, pl.lit(None, dtype=pl.String)).alias("reason"))
    frame = _drop_repeats(frame, rules)
    status = pl.when(pl.col("reason").is_null()).then(pl.lit("keep")).otherwise(pl.lit("drop"))
    frame = frame.with_columns(status.alias("status"))
    rest = [name for name in prompts.columns if name not in {"status", "reason"}]
    return frame.select(*rest, "status", "reason")


def kept(prompts: pl.DataFrame) -> pl.DataFrame:
    """The rows that the filter kept.

    Raises:
        DataError: the filter dropped every one; the message names the commonest reasons.
    """
    frame = prompts.filter(pl.col("status") == "keep") if "status" in prompts.columns else prompts
    if frame.is_empty():
        causes = ", ".join(f"{reason}: {n}" for reason, n in list(reasons(prompts).items())[:3])
        raise DataError(f"no prompt passed the filter ({causes}); relax the rules or look at the prompts")
    return frame


def reasons(prompts: pl.DataFrame) -> dict[str, int]:
    """How many prompts were dropped for each reason, commonest first."""
    counts = prompts.filter(pl.col("status") == "drop").group_by("reason").len()
    return dict(counts.sort("len", "reason", descending=[True, False]).iter_rows())


_QUOTED = r'"[^"]*"|“[^”]*”|「[^」]*」|『[^』]*』'
_QUOTED_TEXT = r'"\s*[^"\s][^"]*"|“\s*[^”\s][^”]*”|「[^」]+」|『[^』]+』'
_MARKUP = (
    r"^\s*(?:[{\[#>*]|```|[-•]\s|\d+[.)]\s)"  # JSON, markdown, list items
    r"|[\r\n]\s*[\r\n]|</?[a-z][^>]*>|\*\*|\\n"
    r"|--(?:ar|v|style|stylize|no|q|s)\b|\(\S[^()]*:\d+(?:\.\d+)?\)|<lora:"  # parameters of image tools
    r"|^\s*(?:prompt|image prompt|description|caption|title|id|提示词|描述)\s*[:：]"
)
_CHATTER = (
    r"^\s*[\"“']?(?:sure[,!.]|certainly[,!.]|of course[,!.]|okay[,!.]|here(?:'s| is| are)\b.*:|i(?:'m| am) sorry|sorry[,!.]"
    r"|as an ai\b|i can(?:not|'t|’t)\b|i(?:'m| am) unable|i apologi[sz]e|unfortunately, i\b|抱歉|对不起|好的[，,]|作为(?:一个)?(?:ai|人工智能))"
    r"|\b(?:as a language model|i hope this helps|let me know if)\b"
)
_BOOSTERS = (
    r"\b(?:masterpiece|best quality|(?:ultra|highly|extremely|super|hyper)[ -]?(?:detailed|realistic|quality)|8k|4k|uhd|hdr|octane render"
    r"|unreal engine|trending on artstation|artstation|award[ -]winning|sharp focus|absurdres|highres|1girl|1boy|raw photo)\b"
)
# Phrases that announce text in the image. "Reading" or "says" alone would catch people, so a thing that bears text precedes;
# what plainly is a person's reading or speaking is cut out first.
_PERSON_READS = (
    r"\b(?:read(?:s|ing)?|say(?:s|ing)?|spell(?:s|ing)?) (?:(?:a|an|the|his|her|their|my|some|aloud|goodbye|hello|grace|prayers?|quietly|silently|to|in|at|by"
    r"|on|with|under|from|while|about|books?|news|newspapers?|comics|room|glasses|lamp|chair|nook|light|corner|area|desk|table|list)\b|[.,;])"
)
_BEARER = (
    r"(?:signs?|signboards?|boards?|blackboard|whiteboard|chalkboard|banners?|posters?|billboards?|labels?|headlines?|slogan|title|subtitle|"
    r"caption|inscription|buttons?|badge|logo|stickers?|plaque|screen|menu|notes?|cards?|t-shirt|shirt|placards?|tags?|cover|marquee|neon|text|"
    r"words?|lettering|letters|tagline|heading|ticket|envelope|plate|flag|mug|cap|tombstone|gravestone|flyer|slide|display|paper)"
)
_ANNOUNCES = (
    rf"\b{_BEARER}\b[^.!?\"“]{{0,40}}?\b(?:reads?|reading|says?|saying|spelling|spells|stating|states|proclaims?|proclaiming)\b"
    r"|\b(?:with|bearing|displaying|showing|displays|shows|bears) the (?:words?|text|title|headline|slogan|inscription|message|phrase)\b"
    r"|\b(?:is|are|poster|book|slide|film|painting|album|menu|chart|cover) (?:titled|entitled|captioned)\b"
    r"|\b(?:inscribed|emblazoned|lettered|printed) with the words?\b"
    r"|写着|写有|印着|标题为|刻着|上书|题字为"
)
_BARE_TEXT = r"(?:[\s:：,，])(?:'[^']{2,}'|‘[^’]{2,}’|`[^`]{2,}`|«[^»]{2,}»)(?:[\s.,;:!?。，]|$)"  # any other kind of quotes
_HAN = r"\p{Han}"
_LATIN = r"[A-Za-z]"


def _words(text: pl.Expr) -> pl.Expr:
    """Lower-case text as words between single spaces, a space at each end: " a red circle "."""
    return pl.concat_str(pl.lit(" "), text.str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars(), pl.lit(" "))


def _answer(rules: FilterRules) -> pl.Expr:
    return pl.col("problem").is_not_null()


def _empty(rules: FilterRules) -> pl.Expr:
    return pl.col("_words").str.strip_chars() == ""


def _control_characters(rules: FilterRules) -> pl.Expr:
    return pl.col("prompt").str.contains(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u{FFFD}\u{200B}-\u{200F}\u{202A}-\u{202E}&&[^\u{200D}]]")


def _format(rules: FilterRules) -> pl.Expr:
    return pl.col("_lower").str.contains(_MARKUP)


def _chatter(rules: FilterRules) -> pl.Expr:
    return pl.col("_lower").str.contains(_CHATTER)


def _is_zh() -> pl.Expr:
    return pl.col("language") == "zh"


def _too_short(rules: FilterRules) -> pl.Expr:
    shortest = pl.when(_is_zh()).then(rules.min_characters_zh).otherwise(rules.min_characters)
    return pl.col("prompt").str.len_chars() < shortest


def _too_long(rules: FilterRules) -> pl.Expr:
    return pl.col("prompt").str.len_chars() > rules.max_characters


def _language(rules: FilterRules) -> pl.Expr:
    outside = pl.col("_outside")
    han, latin = outside.str.count_matches(_HAN), outside.str.count_matches(_LATIN)
    foreign = outside.str.count_matches(r"[\p{Cyrillic}\p{Arabic}\p{Hangul}\p{Hiragana}\p{Katakana}\p{Thai}\p{Devanagari}\p{Hebrew}]")
    letters = (han + latin + foreign).cast(pl.Float64)
    # One Chinese character carries about as much as three Latin letters.
    expected = pl.when(_is_zh()).then(3.0 * han / (3.0 * han + latin + foreign)).otherwise(latin / letters)
    return (letters > 0) & (expected < pl.when(_is_zh()).then(0.5).otherwise(0.8)) & pl.col("language").is_in(["en", "zh"])


def _tag_soup(rules: FilterRules) -> pl.Expr:
    outside = pl.col("_outside")
    separators = outside.str.count_matches(r"[,，、;|]").cast(pl.Float64)
    sentences = outside.str.count_matches(r"[.!?。！？](?:\s|$|\p{Han})").cast(pl.Float64)
    words = outside.str.count_matches(r"[\p{L}\p{N}'’-]+").cast(pl.Float64)
    segments = separators + sentences + 1
    listed = ~_is_zh() & (separators >= 4) & (words / segments < 2.8) & (separators / (sentences + 1) >= 4)
    han = outside.str.count_matches(_HAN).cast(pl.Float64)
    listed_zh = _is_zh() & (separators >= 5) & (han / segments < 4.5) & (sentences <= 1)
    boosters = outside.str.count_matches(_BOOSTERS)
    return listed | listed_zh | (boosters >= 3) | ((boosters >= 2) & (words < 20)) | outside.str.contains(r"\bmasterpiece\s*,")


def _sentence(rules: FilterRules) -> pl.Expr:
    if not rules.require_sentence:
        return pl.lit(False)
    return ~pl.col("prompt").str.contains(r"[.!?。！？…][\"”」』’)]?\s*$")


def _quotes_unbalanced(rules: FilterRules) -> pl.Expr:
    text = pl.col("prompt")
    # 24" or 7 1/2" is a measure, not a quote
    straight = text.str.replace_all(r"\d\"(?:\s|[,.;x×-]|$)", " ").str.count_matches('"', literal=True)
    straight = pl.when(text.str.count_matches('"', literal=True) % 2 == 0).then(0).otherwise(straight)
    pairs = [("“", "”"), ("「", "」"), ("『", "』")]
    uneven = [text.str.count_matches(a, literal=True) != text.str.count_matches(b, literal=True) for a, b in pairs]
    return (straight % 2 == 1) | pl.any_horizontal(*uneven) | text.str.contains(r'^\s*"[^"]*"\s*$')


def _quotes_empty(rules: FilterRules) -> pl.Expr:
    return pl.col("prompt").str.contains(r'(?:^|[\s:：,，])"\s*"|“\s*”|「\s*」')


def _text_not_quoted(rules: FilterRules) -> pl.Expr:
    announced = pl.col("_outside").str.replace_all(_PERSON_READS, " ").str.contains(_ANNOUNCES)
    no_quotes = ~pl.col("prompt").str.contains(_QUOTED_TEXT)
    return no_quotes & (announced | pl.col("prompt").str.contains(_BARE_TEXT))


def _text_missing(rules: FilterRules) -> pl.Expr:
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


def _unsafe(rules: FilterRules) -> pl.Expr:
    return safety_score() >= rules.unsafe_score


def safety_score() -> pl.Expr:
    """Sum of the weights of the lexicon's terms in a prompt (each term once), innocent phrases cut out first."""
    lexicon = safety_lexicon()
    words = pl.col("_words").str.replace_many({f" {phrase} ": " " for phrase in lexicon.innocent})
    scores = []
    for weight, terms in lexicon.terms.items():
        latin = [f" {term} " for term in terms if term.isascii()]
        # Chinese has no spaces between words, so its terms match anywhere; extract_many finds overlapping ends too
        patterns = latin + [term for term in terms if not term.isascii()]
        found = words.str.extract_many(patterns, overlapping=True).list.n_unique()
        scores.append(pl.when(words.str.contains_any(patterns)).then(found).otherwise(0) * weight)
    return pl.sum_horizontal(*scores)


def _brand(rules: FilterRules) -> pl.Expr:
    latin = [f" {name} " for name in brands() if name.isascii()]
    return pl.col("_words").str.contains_any(latin + [name for name in brands() if not name.isascii()])


Rule = Callable[[FilterRules], pl.Expr]
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
#: Every reason a prompt can be dropped for.
REASONS = (*RULES, "duplicate", "near-duplicate", "repeated-opener")


def _drop_repeats(frame: pl.DataFrame, rules: FilterRules) -> pl.DataFrame:
    """Add the reasons that depend on other rows; only rows that pass the rest count as the first of their kind."""

    def drop(frame: pl.DataFrame, reason: str, repeated: pl.Expr | pl.Series) -> pl.DataFrame:
        if reason in rules.disabled:
            return frame
        verdict = pl.when(pl.col("reason").is_null() & repeated).then(pl.lit(reason)).otherwise(pl.col("reason"))
        return frame.with_columns(verdict.alias("reason"))

    passes = pl.col("reason").is_null()
    first = pl.struct("_words", passes).is_first_distinct()
    frame = drop(frame, "duplicate", ~first)
    if rules.near_duplicates and "near-duplicate" not in rules.disabled:
        from l2p_data.dedup import near_duplicates

        texts = frame["_words"].to_list()
        alive = frame["reason"].is_null().to_list()
        frame = drop(frame, "near-duplicate", near_duplicates(texts, alive, rules.near_duplicate_threshold))
    if rules.max_opener_share is not None:
        opener = pl.col("_words").str.extract(r"^( \S+ \S+ \S+)")
        key = pl.struct(opener.alias("opener"), passes)
        allowed = pl.max_horizontal(pl.lit(rules.min_opener_count), (passes.sum() * rules.max_opener_share).cast(pl.Int64))
        surplus = opener.is_not_null() & (pl.int_range(pl.len()).over(key) >= allowed)
        frame = drop(frame, "repeated-opener", surplus)
    return frame


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
    """The shipped `lexicon/brands.txt`, lower-case, punctuation as spaces."""
    lines = resources.files("l2p_data").joinpath("lexicon/brands.txt").read_text(encoding="utf-8").splitlines()
    names = [line.strip().replace("-", " ") for line in lines if line.strip() and not line.startswith("#")]
    return tuple(dict.fromkeys(names))

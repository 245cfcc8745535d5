"""Prompt -> keep, or drop with a reason (sec. 3.2, "Automated Prompt Filtering", Fig. 11): the rules, as
polars expressions.

Each rule is one boolean expression over the whole frame; the first that holds names the reason. A dropped
row stays in the frame, so that what was lost, and why, can be counted and looked at.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from l2p_run.errors import raised_as
from l2p_run.settings import check_keys, check_settings, setting

from l2p_data.errors import DataError, checks
from l2p_data.filters.rules import RULES, with_helper_columns
from l2p_data.prompts.records import check_prompts

#: Sub-classes whose prompts must say, in double quotes, what is written in the image (Fig. 10).
TEXT_SUBCLASSES = ("Posters", "Slides", "UI", "English Text", "Chinese Text")


#: Every reason a prompt can be dropped for, in the order in which the rules are tried.
REASONS = (*RULES, "duplicate", "near-duplicate", "repeated-opener")


@dataclass(frozen=True, kw_only=True)
class FilterRules:
    """Which rules apply, and how strictly. The defaults let short but well-formed prompts pass."""

    min_characters: int = setting(3, ge=0, le=1_000_000)
    max_characters: int = setting(2000, ge=1, le=1_000_000)
    min_characters_zh: int = setting(2, ge=0, le=1_000_000)  # a Chinese character says about what three
    # Latin ones do
    require_sentence: bool = False  # the prompt must end like a sentence
    max_opener_share: float | None = setting(None, ge=0, le=1)  # share of the prompts that may start with
    # the same three words
    min_opener_count: int = setting(20, ge=0, le=10**9)  # an opener is never "repeated too often" below this
    # many prompts
    unsafe_score: float = setting(1.0, gt=0, le=1000)  # drop at this safety score; see lexicon/safety.toml
    # for the weights
    brands: bool = True
    required_text_subclasses: tuple[str, ...] = TEXT_SUBCLASSES
    near_duplicates: bool = False  # MinHash over the prompts that pass everything else
    near_duplicate_threshold: float = setting(0.8, gt=0, le=1)  # Jaccard similarity of 5-character shingles
    disabled: tuple[str, ...] = ()  # reasons to leave out, e.g. ("tag-soup",)

    def __post_init__(self) -> None:
        raised_as(DataError)(check_settings)(self)
        if unknown := sorted(set(self.disabled) - set(REASONS)):
            raise DataError(
                f"disabled rule {unknown[0]!r} does not exist; the rules are {', '.join(REASONS)}"
            )
        if self.min_characters > self.max_characters:
            raise DataError(f"prompt length bounds {self.min_characters}..{self.max_characters} are empty")

    @classmethod
    def paper(cls, **changes: object) -> "FilterRules":
        """Return the paper's length target, 200-350 characters (Fig. 2c), and complete sentences (Fig.
        10).
        """
        with raised_as(DataError):
            check_keys(changes, [one.name for one in dataclasses.fields(cls)])
        strict = cls(
            min_characters=200,
            max_characters=350,
            min_characters_zh=60,
            require_sentence=True,
            max_opener_share=0.05,
        )
        return dataclasses.replace(strict, **changes)  # type: ignore[arg-type]


@checks
def filter_prompts(prompts: pl.DataFrame, rules: FilterRules | None = None) -> pl.DataFrame:
    """Judge every prompt; add `status` ("keep" or "drop") and `reason` (null if kept). No row is removed.

    Judging a frame again replaces the earlier verdict, so rules can be changed and re-applied.
    """
    check_prompts(prompts)
    rules = rules or FilterRules()
    frame = with_helper_columns(prompts)
    applied = [
        reason for reason in RULES if reason not in rules.disabled and (reason != "brand" or rules.brands)
    ]
    frame = frame.with_columns(
        RULES[reason].test(rules).alias(f"_{reason}") for reason in applied if RULES[reason].gate is None
    )
    frame = _behind_gates(frame, [reason for reason in applied if RULES[reason].gate is not None], rules)
    named = [pl.when(pl.col(f"_{reason}")).then(pl.lit(reason)) for reason in applied]
    frame = frame.with_columns(pl.coalesce(*named, pl.lit(None, dtype=pl.String)).alias("reason"))
    frame = _drop_repeats(frame, rules)
    status = pl.when(pl.col("reason").is_null()).then(pl.lit("keep")).otherwise(pl.lit("drop"))
    frame = frame.with_columns(status.alias("status"))
    rest = [name for name in prompts.columns if name not in {"status", "reason"}]
    return frame.select(*rest, "status", "reason")


def _behind_gates(frame: pl.DataFrame, reasons: Sequence[str], rules: FilterRules) -> pl.DataFrame:
    """Add a boolean column per rule, which is tried only on the rows that its gate lets through."""
    gates = {reason: gate() for reason in reasons if (gate := RULES[reason].gate) is not None}
    opened = frame.select(gate.alias(reason) for reason, gate in gates.items())
    columns = []
    for reason in reasons:
        rows = opened[reason].arg_true()
        found = pl.Series(f"_{reason}", [False], dtype=pl.Boolean).new_from_index(0, frame.height)
        if not rows.is_empty():
            values = frame[rows].select(RULES[reason].test(rules)).to_series()
            found = found.scatter(rows, values.fill_null(False))
        columns.append(found)
    return frame.with_columns(columns)


def kept(prompts: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that the filter kept.

    Raises:
        DataError: the filter dropped every one; the message names the commonest reasons.
    """
    frame = prompts.filter(pl.col("status") == "keep") if "status" in prompts.columns else prompts
    if frame.is_empty():
        causes = ", ".join(f"{reason}: {n}" for reason, n in list(reasons(prompts).items())[:3])
        raise DataError(f"no prompt passed the filter ({causes}); relax the rules or look at the prompts")
    return frame


def reasons(prompts: pl.DataFrame) -> dict[str, int]:
    """Return how many prompts were dropped for each reason, commonest first."""
    counts = prompts.filter(pl.col("status") == "drop").group_by("reason").len()
    return dict(counts.sort("len", "reason", descending=[True, False]).iter_rows())


def _drop_repeats(frame: pl.DataFrame, rules: FilterRules) -> pl.DataFrame:
    """Add the reasons that depend on other rows; only rows that pass the rest count as the first of their
    kind."""

    def drop(frame: pl.DataFrame, reason: str, repeated: pl.Expr | pl.Series) -> pl.DataFrame:
        if reason in rules.disabled:
            return frame
        verdict = (
            pl.when(pl.col("reason").is_null() & repeated).then(pl.lit(reason)).otherwise(pl.col("reason"))
        )
        return frame.with_columns(verdict.alias("reason"))

    passes = pl.col("reason").is_null()
    first = pl.struct("_words", passes).is_first_distinct()
    frame = drop(frame, "duplicate", ~first)
    if rules.near_duplicates and "near-duplicate" not in rules.disabled:
        from l2p_data.filters.dedup import near_duplicates

        texts = frame["_words"].to_list()
        alive = frame["reason"].is_null().to_list()
        frame = drop(frame, "near-duplicate", near_duplicates(texts, alive, rules.near_duplicate_threshold))
    if rules.max_opener_share is not None:
        opener = pl.col("_words").str.extract(r"^( \S+ \S+ \S+)")
        key = pl.struct(opener.alias("opener"), passes)
        allowed = pl.max_horizontal(
            pl.lit(rules.min_opener_count), (passes.sum() * rules.max_opener_share).cast(pl.Int64)
        )
        surplus = opener.is_not_null() & (pl.int_range(pl.len()).over(key) >= allowed)
        frame = drop(frame, "repeated-opener", surplus)
    return frame

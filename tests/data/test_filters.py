"""The rule filter: each rule drops what it should, keeps what looks alike, and names its reason."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_data import DataError, FilterRules, filter_prompts, prompt_records
from l2p_data.filters.filtering import REASONS, kept, reasons
from l2p_data.filters.rules import RULES, with_helper_columns


def verdict(prompt: str, rules: FilterRules | None = None, **columns: str) -> str | None:
    return filter_prompts(prompt_records([prompt], **columns), rules)["reason"][0]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "empty"),
        ("  ...  ", "empty"),
        ("a cat \x00 on a mat", "control-characters"),
        ("Sure, here is a prompt about a cat", "chatter"),
        ("I'm sorry, but I cannot help with that.", "chatter"),
        ("1. A cat sits on a wall.", "format"),
        ("**A cat** sits on a wall.", "format"),
        ("Prompt: A cat sits on a wall.", "format"),
        ("A cat sits on a wall --ar 16:9", "format"),
        ("A (fluffy:1.3) cat sits on a wall.", "format"),
        ("x" * 3000, "too-long"),
        ("Кошка сидит на стене.", "language"),
        ("一只猫坐在墙上。", "language"),
        ('A sign that says "OPEN in the window.', "quotes-unbalanced"),
        ('"A cat sits on a wall."', "quotes-unbalanced"),
        ('A sign that says "" in the window.', "quotes-empty"),
        ("A sign that says OPEN in the window.", "text-not-quoted"),
        ("A street sign reading 'STOP' at the corner.", "text-not-quoted"),
        ("cat, dog, house, tree, blue sky, cloud", "tag-soup"),
        ("masterpiece, best quality, 1girl, long hair, smile", "tag-soup"),
        ("A naked woman lies on a bed.", "unsafe"),
        ("An iPhone lies on a marble table.", "brand"),
    ],
)
def test_a_bad_prompt_is_dropped_for_its_reason(prompt: str, reason: str) -> None:
    assert verdict(prompt) == reason


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle",
        "two red circles and a blue star on a gray background",
        "A great tit perches on a branch.",
        "A bloody mary stands on the bar, garnished with celery.",
        "A cock crowing at dawn on a farm fence.",
        "A woman reading a book in a library.",
        "A teacher says hello to her class.",
        'A neon sign reading "OPEN 24 HOURS" hangs over a diner.',
        "A sign that says “Bienvenue” over the door.",
        'A 27" monitor stands on a desk.',
        "A red apple, a green pear, a yellow banana, and a bunch of grapes lie on a wooden table.",
        "The dog's bowl and the cat's toy are on the kitchen floor.",
        "👩‍🍳 cooks soup in a bright kitchen.",
    ],
)
def test_a_good_prompt_is_kept(prompt: str) -> None:
    assert verdict(prompt) is None


@pytest.mark.parametrize(
    ("subclass", "language", "prompt", "reason"),
    [
        ("Posters", "en", "A travel poster of a mountain lake.", "text-missing"),
        ("Posters", "en", 'A travel poster of a mountain lake with the title "ALPINE".', None),
        ("Chinese Text", "zh", "一块木牌挂在门口，上面写着“欢迎光临”。", None),
        ("Chinese Text", "zh", "一块木牌挂在门口，上面写着“OPEN”。", "text-missing"),
        ("English Text", "en", 'A mug with the words "好" on it.', "text-missing"),
        ("Animals", "zh", "一只橘猫蜷缩在窗台上，阳光洒在它的毛发上。", None),
        ("Animals", "zh", "An orange cat on the window sill.", "language"),
    ],
)
def test_sub_classes_and_languages_have_their_own_demands(
    subclass: str, language: str, prompt: str, reason: str | None
) -> None:
    assert verdict(prompt, subclass=subclass, language=language) == reason


def test_duplicates_are_found_beyond_case_and_punctuation_and_the_first_stays() -> None:
    judged = filter_prompts(
        prompt_records(["A red circle.", "a blue star", "a red  circle", "a red circle!"])
    )
    assert judged["reason"].to_list() == [None, None, "duplicate", "duplicate"]


def test_a_dropped_prompt_does_not_shadow_its_kept_twin() -> None:
    frame = prompt_records(["A plain mug.", "A plain mug."]).with_columns(
        subclass=pl.Series(["Posters", "Objects"])
    )
    assert filter_prompts(frame)["reason"].to_list() == ["text-missing", None]


def test_openers_repeated_too_often_are_dropped_beyond_their_share() -> None:
    frame = prompt_records(
        [f"A photo of thing {i}." for i in range(50)] + [f"Thing {i} stands on a table." for i in range(50)]
    )
    judged = filter_prompts(frame, FilterRules(max_opener_share=0.1, min_opener_count=5))
    assert reasons(judged) == {"repeated-opener": 40}


def test_the_paper_rules_want_two_to_three_hundred_characters_and_a_full_stop() -> None:
    rules = FilterRules.paper()
    sentence = "A quiet harbour rests under a pale morning sky while small boats drift beside the pier. "
    assert verdict("A cat on a wall.", rules) == "too-short"
    assert verdict((sentence * 3).strip(), rules) is None
    assert verdict((sentence * 3).strip().rstrip("."), rules) == "not-a-sentence"
    assert verdict(sentence * 5, rules) == "too-long"


def test_no_row_is_lost_and_judging_again_replaces_the_verdict() -> None:
    frame = prompt_records(["", "a cat", "A sign that says OPEN on the door."])
    once = filter_prompts(frame)
    assert once.height == 3 and once["status"].to_list() == ["drop", "keep", "drop"]
    assert filter_prompts(once).equals(once)
    relaxed = filter_prompts(once, FilterRules(disabled=("text-not-quoted",)))
    assert relaxed["status"].to_list() == ["drop", "keep", "keep"]


def test_every_reason_given_is_a_documented_one() -> None:
    judged = filter_prompts(prompt_records(["", "1. x", "nude naked", "An iPhone."]))
    assert set(judged["reason"]) <= set(REASONS)


def test_unknown_rule_names_and_an_empty_result_are_clear_errors() -> None:
    with pytest.raises(DataError, match="disabled rule 'tagsoup' does not exist"):
        FilterRules(disabled=("tagsoup",))
    with pytest.raises(DataError, match=r"no prompt passed the filter \(empty: 1\)"):
        kept(filter_prompts(prompt_records([""])))


@pytest.fixture(scope="module")
def labelled() -> pl.DataFrame:
    """Hand-written prompts with the verdict a careful person gives."""
    path = Path(__file__).with_name("labelled_prompts.tsv")
    frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    frame = frame.fill_null("").with_columns(pl.col("prompt").str.replace_all("\\n", "\n", literal=True))
    records = prompt_records(frame["prompt"].to_list()).drop("language", "subclass")
    return filter_prompts(frame.drop("prompt").rename({"reason": "kind"}).hstack(records))


def test_the_labelled_set_is_large_and_covers_both_verdicts(labelled: pl.DataFrame) -> None:
    assert labelled.height >= 300 and labelled["prompt"].n_unique() == labelled.height
    assert min(labelled["label"].value_counts()["count"]) >= 130


@pytest.mark.parametrize(
    ("part", "least_precision", "least_recall"), [("plain", 0.98, 0.95), ("hard", 0.9, 0.5)]
)
def test_precision_and_recall_of_the_rules_on_the_labelled_set(
    labelled: pl.DataFrame, part: str, least_precision: float, least_recall: float
) -> None:
    """ "hard" was written to defeat word lists: what needs understanding is left to the auditor."""
    rows = labelled.filter(pl.col("set") == part)
    dropped, bad = pl.col("status") == "drop", pl.col("label") == "drop"
    hits = rows.filter(dropped & bad).height
    wrong = rows.filter(dropped & ~bad).select("prompt", "reason").rows()
    missed = rows.filter(~dropped & bad)["prompt"].to_list()
    precision, recall = hits / rows.filter(dropped).height, hits / rows.filter(bad).height
    assert precision >= least_precision, wrong
    assert recall >= least_recall, missed


LABELLED = [
    line.split("\t")[-1]
    for line in (Path(__file__).parent / "labelled_prompts.tsv").read_text(encoding="utf-8").splitlines()
]
PIECES = [text[start : start + 40] for text in LABELLED for start in range(0, len(text), 40)]


def without_gates(prompts: pl.DataFrame, rules: FilterRules) -> dict[str, pl.Series]:
    frame = with_helper_columns(prompts)
    return {reason: frame.select(rule.test(rules)).to_series() for reason, rule in RULES.items()}


def check_gates(texts: list[str]) -> None:
    frame = with_helper_columns(prompt_records(texts))
    found = without_gates(prompt_records(texts), FilterRules.paper())
    for reason, rule in RULES.items():
        if rule.gate is not None:
            closed = ~frame.select(rule.gate()).to_series()
            assert not (found[reason] & closed).any(), (reason, frame.filter(found[reason] & closed))


def test_no_gate_hides_what_its_rule_finds_in_the_labelled_prompts() -> None:
    check_gates(LABELLED)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=6), min_size=1, max_size=20))
def test_no_gate_hides_what_its_rule_finds_in_anything(parts: list[list[str]]) -> None:
    check_gates(["".join(pieces) for pieces in parts])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(max_codepoint=300) | st.sampled_from(" .,-'圆"), max_size=40)))
def test_the_quick_way_to_words_is_the_plain_one(texts: list[str]) -> None:
    frame = with_helper_columns(prompt_records(["", *texts]))
    plain = frame["_lower"].str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars()
    assert frame["_words"].to_list() == [f" {words} " for words in plain]

"""The LLM as a strict auditor (Fig. 11): a second judgement of the prompts that passed the rules."""

import json
from collections.abc import Sequence
from typing import Protocol

import polars as pl

from l2p_data.engines.template import audit_message
from l2p_data.errors import checks
from l2p_data.prompts.records import check_prompts

_KINDS = {
    "format": "audit-format",
    "text-rendering": "audit-text-rendering",
    "safety": "audit-safety",
    "rights": "audit-rights",
}


class Judge(Protocol):
    """Anything that answers audit messages with `{"is_valid": bool, "reason": str}`."""

    def judge(self, messages: Sequence[str]) -> list[str]:
        """Return one answer per message, in order."""
        ...


@checks
def audit_prompts(prompts: pl.DataFrame, judge: Judge) -> pl.DataFrame:
    """Ask a judge about every prompt that is not dropped yet; adds `audit`, the judge's own words.

    A prompt judged invalid is dropped with reason `audit-format`, `-text-rendering`, `-safety`, `-rights` or
    `-other`; one without a usable verdict with `audit-unanswered`: what was not checked does not count as
    clean.
    """
    check_prompts(prompts)
    if "status" not in prompts.columns:
        prompts = prompts.with_columns(status=pl.lit("keep"), reason=pl.lit(None, dtype=pl.String))
    asked = [index for index, status in enumerate(prompts["status"]) if status == "keep"]
    rows = prompts.rows(named=True)
    columns = ("prompt", "superclass", "subclass", "category")
    answers = judge.judge([audit_message(*(rows[index][name] for name in columns)) for index in asked])
    status, reason = prompts["status"].to_list(), prompts["reason"].to_list()
    words: list[str | None] = [None] * prompts.height
    for index, answer in zip(asked, answers, strict=True):
        reason[index], words[index] = parse_verdict(answer)
        status[index] = "keep" if reason[index] is None else "drop"
    return prompts.with_columns(
        pl.Series("status", status, dtype=pl.String),
        pl.Series("reason", reason, dtype=pl.String),
        pl.Series("audit", words, dtype=pl.String),
    )


def parse_verdict(answer: str) -> tuple[str | None, str]:
    """Return a judge's answer -> (drop reason or None, its own words)."""
    try:
        verdict = json.loads(answer)
        valid, words = verdict["is_valid"], str(verdict["reason"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "audit-unanswered", answer[:200]
    if not isinstance(valid, bool):
        return "audit-unanswered", answer[:200]
    if valid:
        return None, words
    kind = words.partition(":")[0].strip().lower()
    return _KINDS.get(kind, "audit-other"), words

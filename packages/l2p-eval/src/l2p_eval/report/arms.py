"""What runs of several arms and seeds say together: spread over seeds, and a verdict on each comparison."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from l2p_run.errors import UserError
from l2p_run.settings import check_settings, cut, setting

METRICS = {"geneval": True, "frechet": False, "loss": False, "loss-seen": False, "patch-grid": False}
"""Every metric of an arm, and whether more is better. A run of before a metric came, or of patches without
borders, lacks it: a summary has those that all of its runs have. "geneval:KIND" is the score of one kind of
prompts."""
Results = Mapping[tuple[str, int], Mapping[str, Any]]
"""(arm, seed) -> result: {"seed", "metrics": {metric: value}, "training", "curve", ...}."""
Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One comparison that the paper makes, to be tried on a metric."""

    better: str
    worse: str
    kind: Literal["better", "no worse"] = "better"
    margin: float = setting(0.0, ge=0)  # "no worse": by how much it may be worse, in the metric's units
    metric: str = ""  # "": what the other comparisons rest on

    def __post_init__(self) -> None:
        check_settings(self)
        if self.metric and self.metric.partition(":")[0] not in METRICS:
            raise UserError(
                f"claim: no metric {cut(self.metric)}; there is {', '.join(METRICS)}, and geneval:KIND for"
                " the kinds of the metadata"
            )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One metric of one arm over its seeds. `deviation`: of a sample (n - 1); None for a single seed."""

    values: tuple[float, ...]  # in the order of the seeds
    mean: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A claim, tried on pairs of runs with the same seed.

    It holds if it is true of every pair and does not hold if it is false of every pair. With n pairs, chance
    alone gives one or the other with probability 2^(1-n): a quarter for three seeds.
    """

    text: str
    metric: str
    differences: tuple[float, ...]  # better minus worse, so signed that positive supports the claim
    mean: float | None
    verdict: Verdict


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(
        values=tuple(values), mean=fmean(values), deviation=stdev(values) if len(values) > 1 else None
    )


def compare(claim: Claim, metric: str, results: Results) -> Comparison:
    """Try a claim on every seed for which both arms have a result."""
    sign = 1 if more_is_better(metric) else -1
    both = (
        seed
        for arm, seed in results
        if arm == claim.better
        and all(metric in results.get((name, seed), {}).get("metrics", {}) for name in (arm, claim.worse))
    )
    seeds = sorted(both)
    differences = tuple(
        sign
        * (results[claim.better, seed]["metrics"][metric] - results[claim.worse, seed]["metrics"][metric])
        for seed in seeds
    )
    if claim.kind == "better":
        true = [difference > 0 for difference in differences]
        text = f"{claim.better} is better than {claim.worse}"
    else:
        true = [difference >= -claim.margin for difference in differences]
        text = f"{claim.better} is worse than {claim.worse} by {claim.margin:g} at most"
    decided = len(true) >= 2 and all(math.isfinite(difference) for difference in differences)
    verdict: Verdict = "undecided"
    if decided and len(set(true)) == 1:
        verdict = "holds" if true[0] else "does not hold"
    return Comparison(
        text=text,
        metric=metric,
        differences=differences,
        mean=fmean(differences) if differences else None,
        verdict=verdict,
    )


def summarise(
    labels: Mapping[str, str],
    seeds: Sequence[int],
    claims: Sequence[Claim],
    metric: str,
    results: Results,
) -> dict[str, Any]:
    """Return JSON values of a whole ablation: arms, spread, comparisons, what is missing.

    Args:
        labels: arm -> what charts call it, in the order of the charts.
        metric: what the verdicts rest on.
    """
    arms = {}
    known = _common([result["metrics"] for result in results.values()])
    for name, label in labels.items():
        own = [results[name, seed] for seed in seeds if (name, seed) in results]
        if own:
            arms[name] = {
                "label": label,
                "seeds": [result["seed"] for result in own],
                "metrics": {key: asdict(spread([r["metrics"][key] for r in own])) for key in known},
                "training": {
                    key: fmean(result["training"][key] for result in own)
                    for key in ("images_per_second", "seconds", "trainable_parameters", "frozen_parameters")
                },
            }
    missing = [f"{name}/{seed}" for seed in seeds for name in labels if (name, seed) not in results]
    return {
        "metric": metric,
        "complete": not missing,
        "missing": missing,
        "arms": arms,
        "comparisons": [asdict(compare(claim, claim.metric or metric, results)) for claim in claims],
        "runs": [{"arm": arm, **results[arm, seed]} for arm, seed in sorted(results)],
    }


def measured(summary: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a summary, in the order of `METRICS`, and those of kinds of prompts after
    theirs.
    """
    return _common([arm["metrics"] for arm in summary["arms"].values()])


def more_is_better(metric: str) -> bool:
    """Return whether more is better of a metric, or of one of its kinds."""
    return METRICS[metric.partition(":")[0]]


def _common(every: Sequence[Mapping[str, Any]]) -> list[str]:
    first = [key for metrics in every[:1] for key in metrics] or list(METRICS)
    shared = [key for key in first if all(key in metrics for metrics in every)]
    return [key for name in METRICS for key in shared if key.partition(":")[0] == name]


def table(summary: Mapping[str, Any]) -> str:
    """Return Markdown: a row an arm, mean and deviation of every metric, seconds of training; then the
    verdicts.
    """
    names = measured(summary)
    heads = [f"{name} ({'higher' if more_is_better(name) else 'lower'} is better)" for name in names]
    lines = ["| arm | " + " | ".join([*heads, "training, s"]) + " | n |", "|---" * (len(names) + 3) + "|"]
    for arm in summary["arms"].values():
        cells = [_cell(arm["metrics"][name], name) for name in names]
        cells.append(f"{arm['training']['seconds']:.0f}")
        lines.append(f"| {arm['label']} | {' | '.join(cells)} | {len(arm['seeds'])} |")
    if reference := summary.get("reference"):
        values = [reference["metrics"].get(name) for name in names]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        lines.append(f"| reference: {reference['name']} | {' | '.join(cells)} | | |")
    lines.append("")
    for comparison in summary["comparisons"]:
        pairs = ", ".join(f"{difference:+.3f}" for difference in comparison["differences"]) or "no pairs"
        lines.append(
            f"- {comparison['text']} ({comparison['metric']}): **{comparison['verdict']}** ({pairs})"
        )
    if summary["missing"]:
        lines.append(f"- **Partial**: {len(summary['missing'])} runs are missing.")
    return "\n".join(lines)


def _cell(value: Mapping[str, Any], name: str) -> str:
    digits = 1 if name == "frechet" else 3
    spread_ = "" if value["deviation"] is None else f" ± {value['deviation']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread_}"

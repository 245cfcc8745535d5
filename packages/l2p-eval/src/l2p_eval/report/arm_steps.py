"""Metrics of an ablation's arms against the steps of their training."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from l2p_eval.report.arms import measured, more_is_better
from l2p_eval.report.panels import panels, save_panels

_COLORS = ("#6d5efc", "#e8590c", "#2b8a3e", "#c2255c", "#1971c2", "#868e96")


def save_steps(summary: Mapping[str, Any], path: Path) -> None:
    """Draw one panel a metric: every seed a thin line, their mean a thick one, and the reference's own score.

    Args:
        summary: of `l2p_eval.report.arms.summarise`, whose runs have "history": [{"step", "metrics"}].
    """
    names = measured(summary)
    title = f"{summary['title']} ({summary['paper']})"
    figure, every = panels(title, len(names), columns=4, size=(3.6, 2.7))
    reference = summary.get("reference", {"name": "", "metrics": {}})
    for axes, name in zip(every, names, strict=True):
        for (arm, entry), color in zip(summary["arms"].items(), _COLORS * len(names), strict=False):
            _draw_arm(
                axes, [run for run in summary["runs"] if run["arm"] == arm], name, color, entry["label"]
            )
        if name in reference["metrics"]:
            axes.axhline(
                reference["metrics"][name],
                color="#868e96",
                linestyle="--",
                linewidth=1,
                label=reference["name"],
            )
        if more_is_better(name):
            axes.set_ylim(0, 1.02)
        better = "higher" if more_is_better(name) else "lower"
        axes.set_title(f"{name} ({better} is better)", fontsize=9)
        axes.set_xlim(left=0)
    every[0].legend(fontsize=7, frameon=False)
    save_panels(figure, path)


def _draw_arm(axes: Any, runs: list[Mapping[str, Any]], name: str, color: str, label: str) -> None:
    values: dict[int, list[float]] = {}
    for run in runs:
        points = [(at["step"], at["metrics"][name]) for at in run.get("history", ()) if name in at["metrics"]]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, linewidth=0.7, alpha=0.5)
        for step, value in points:
            values.setdefault(step, []).append(value)
    if values:
        steps = sorted(values)
        means = [fmean(values[step]) for step in steps]
        axes.plot(steps, means, "o-", color=color, markersize=3, linewidth=1.8, label=label)

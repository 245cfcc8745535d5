"""Metrics of an ablation's arms against the steps and the seconds of their training."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from l2p_eval.report.arms import measured, more_is_better
from l2p_eval.report.panels import panels, save_panels

_COLORS = ("#6d5efc", "#e8590c", "#2b8a3e", "#c2255c", "#1971c2", "#868e96")
_COLUMNS = 5


def save_steps(summary: Mapping[str, Any], path: Path) -> None:
    """Draw two panels a metric, over steps and over seconds: every seed a thin line, their mean a thick one.

    The reference's own value is a dashed line where it has one.

    Args:
        summary: of `l2p_eval.report.arms.summarise`, whose runs have "history": [{"step", "metrics"}]. The
            seconds of a step are those of the run's whole training, shared out evenly.
    """
    names = measured(summary)
    title = f"{summary['title']} ({summary['paper']})"
    columns = len(names) if len(names) <= _COLUMNS else _COLUMNS - 1
    figure, every = panels(title, 2 * len(names), columns=columns, size=(3.6, 2.7))
    reference = summary.get("reference", {"name": "", "metrics": {}})
    of_steps, of_seconds = every[: len(names)], every[len(names) :]
    for axes, name, over_seconds in [
        *zip(of_steps, names, [False] * len(names), strict=True),
        *zip(of_seconds, names, [True] * len(names), strict=True),
    ]:
        for (arm, entry), color in zip(summary["arms"].items(), _colors(len(summary["arms"])), strict=True):
            runs = [run for run in summary["runs"] if run["arm"] == arm]
            _draw_arm(axes, runs, name, color, entry["label"], over_seconds=over_seconds)
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
        axes.set_xlabel("seconds of training, as the machine was" if over_seconds else "steps", fontsize=8)
        axes.set_xlim(left=0)
    handles = {
        label: handle
        for axes in every
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    save_panels(figure, path)


def _colors(count: int) -> list[Any]:
    from matplotlib import colormaps

    return (
        list(_COLORS[:count])
        if count <= len(_COLORS)
        else [colormaps["tab20"](at % 20) for at in range(count)]
    )


def _draw_arm(
    axes: Any, runs: list[Mapping[str, Any]], name: str, color: Any, label: str, *, over_seconds: bool
) -> None:
    values: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        training = run["training"]
        step_seconds = training["seconds"] / max(1, training["steps"]) if over_seconds else 1.0
        points = [(at["step"], at["metrics"][name]) for at in run.get("history", ()) if name in at["metrics"]]
        if points:
            axes.plot(
                [step * step_seconds for step, _ in points],
                [value for _, value in points],
                color=color,
                linewidth=0.7,
                alpha=0.5,
            )
        for step, value in points:
            values.setdefault(step, []).append((step * step_seconds, value))
    if values:
        means = [
            (fmean(at for at, _ in values[step]), fmean(v for _, v in values[step]))
            for step in sorted(values)
        ]
        axes.plot(*zip(*means, strict=True), "o-", color=color, markersize=3, linewidth=1.8, label=label)

"""The chart of an ablation, and a sheet of what its arms paint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2p_run.places import atomic_path, put, write_json, write_text

from l2p_eval.layout import image_path
from l2p_eval.report.arm_steps import save_steps
from l2p_eval.report.arms import METRICS, measured, table
from l2p_eval.report.charts import running_mean
from l2p_eval.report.panels import panels, save_panels
from l2p_eval.report.pictures import grid_sheet

_TITLES = {
    "geneval": "six-task score, held-out prompts",
    "frechet": "FD-efficientnet-lite0 to the reference",
    "loss": "eq. 5, held-out pictures",
    "loss-seen": "eq. 5, pictures of its own corpus",
    "patch-grid": "jump at patch borders over jump inside",
}
_COLUMNS = 3
_ACCENT, _POINT = "#6d5efc", "#17181c"


def write_arms(
    summary: Mapping[str, Any],
    folder: Path,
    *,
    reference: tuple[str, Sequence[Path]],
    painted: Mapping[str, Path],
    prompts: Sequence[Any],
) -> None:
    """Write results.json, results.md, chart.png, pictures.png and, of runs with a history, steps.png.

    Args:
        summary: of `l2p_eval.report.arms.summarise`, with "title" and "paper".
        folder: gets the files.
        reference: what it is called, and one picture of each prompt.
        painted: what an arm is called -> GenEval folder of its first seed, where that is done.
        prompts: GenEval's.
    """
    if summary["runs"]:
        save_chart(summary, folder / "chart.png")
    if any(len(run.get("history", ())) > 1 for run in summary["runs"]):
        save_steps(summary, folder / "steps.png")
    if painted:
        save_pictures(reference, painted, prompts, folder / "pictures.png")
    title = f"# {summary['title']} ({summary['paper']})"
    write_text(folder / "results.md", f"{title}\n\n{table(summary)}\n")
    write_json(folder / "results.json", summary, ensure_ascii=True, allow_nan=False)


def publish_arms(root: Path, folder: Path, name: str) -> None:
    """Copy what `write_arms` left in `root` (JSON and PNG) to `folder`, where it is committed, as NAME.*."""
    kept = {"results.json": ".json", **{f"{each}.png": f"-{each}.png" for each in ("pictures", "steps")}}
    for file, suffix in {**kept, "chart.png": ".png"}.items():
        if (root / file).is_file():
            put(root / file, folder / f"{name}{suffix}")


def save_chart(summary: Mapping[str, Any], path: Path) -> None:
    """Draw one panel a metric (every seed a point, the bar their mean), the verdict's metric over the seconds
    of training, and the training loss over steps."""
    from matplotlib import colormaps

    arms, names = list(summary["arms"].values()), [name for name in measured(summary) if name in METRICS]
    title = f"{summary['title']} ({summary['paper']})"
    figure, every = panels(title, len(names) + 2, columns=_COLUMNS, size=(4.4, max(2.7, 0.3 * len(arms) + 1)))
    for number, (axes, name) in enumerate(zip(every, names, strict=False)):
        rows = range(len(arms))
        values = [arm["metrics"][name] for arm in arms]
        errors = [value["deviation"] or 0.0 for value in values]
        axes.barh(
            rows, [v["mean"] for v in values], xerr=errors, color=_ACCENT, alpha=0.55, capsize=3, height=0.6
        )
        for row, value in zip(rows, values, strict=True):
            axes.plot(value["values"], [row] * len(value["values"]), ".", color=_POINT, markersize=5)
        axes.set_yticks(rows, [arm["label"] for arm in arms] if number % _COLUMNS == 0 else [""] * len(arms))
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        bold = {"fontweight": "bold"} if name == summary["metric"] else {}
        better = "higher" if METRICS[name] else "lower"
        axes.set_title(f"{_TITLES[name]}\n({better} is better)", fontsize=9, **bold)
    shades = colormaps["tab10" if len(arms) <= 10 else "tab20"]
    for axes in every[-2:]:
        axes.set_prop_cycle(color=[shades(number) for number in range(shades.N)])
    _against_seconds(every[-2], summary)
    _curves(every[-1], summary)
    handles, labels = every[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_COLUMNS, fontsize=8, frameon=False)
    save_panels(figure, path)


def _against_seconds(axes: Any, summary: Mapping[str, Any]) -> None:
    """Draw every run as a point, with the colours of the loss curves beside it."""
    metric = summary["metric"]
    for name in summary["arms"]:
        runs = [run for run in summary["runs"] if run["arm"] == name and metric in run["metrics"]]
        seconds = [run["training"]["seconds"] for run in runs]
        axes.plot(seconds, [run["metrics"][metric] for run in runs], "o", markersize=5)
    axes.margins(0.08)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_title(f"{_TITLES[metric]}\nagainst seconds of training", fontsize=9)
    axes.set_xlabel("seconds, as the machine was", fontsize=8)


def _curves(axes: Any, summary: Mapping[str, Any]) -> None:
    """Training loss, the mean over seeds of a running mean."""
    for name, arm in summary["arms"].items():
        curves = [run["curve"] for run in summary["runs"] if run["arm"] == name and run["curve"]]
        if not curves:
            axes.plot([], [], label=arm["label"])  # keeps its colour
            continue
        length = min(len(curve) for curve in curves)
        smooth = [running_mean([loss for _, loss in curve[:length]], keep=0.6) for curve in curves]
        steps = [step for step, _ in curves[0][:length]]
        axes.plot(
            steps, [sum(column) / len(column) for column in zip(*smooth, strict=True)], label=arm["label"]
        )
    axes.set_yscale("log")
    axes.set_title("training loss (eq. 5), running mean\n(each on its own data and noise levels)", fontsize=9)
    axes.set_xlabel("step", fontsize=8)


def save_pictures(
    reference: tuple[str, Sequence[Path]],
    folders: Mapping[str, Path],
    prompts: Sequence[Any],
    path: Path,
) -> None:
    """Draw the reference and, below it, one row an arm: the same prompts, one of each tag (and kind).

    Args:
        reference: what it is called, and one picture of each prompt.
        folders: what an arm is called -> GenEval folder of its first seed.
        prompts: GenEval's.
    """
    first = {(prompt.tag, prompt.kind): index for index, prompt in reversed(list(enumerate(prompts)))}
    chosen = sorted(first.values())
    rows = [(reference[0], [reference[1][index] for index in chosen])]
    rows += [(name, [image_path(folder, index, 0) for index in chosen]) for name, folder in folders.items()]
    with atomic_path(path) as temporary:
        grid_sheet(rows, captions=[prompts[index].prompt for index in chosen]).save(temporary, format="PNG")

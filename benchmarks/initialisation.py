"""What the starts of the new ends are worth: convergence curves of eq. 5 from each, on the miniature.

    uv run python benchmarks/initialisation.py runs/mini/corpus [--starts default fitted fitted+detail]
        [--steps 300] [--seeds 0 1 2] [--out runs/initialisation]

Trains a few hundred steps from every start with every seed, in the settings of configs/mini.toml. A seed
fixes the images, the noise and the sigmas of every step: starts differ in nothing but their first weights.
Running the same command again resumes. With more starts or seeds only those are trained, and the earlier
ones that are named again are read. Writes OUT/result.json and OUT/curves.png, and prints one table: the mean
of eq. 5 in a window of steps, over seeds, with the spread (half the range).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STARTS = ("default", "zero-output", "fitted", "fitted+detail", "fitted+kaiming+gated")
QUARTERS = ("sigma 0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")
ROOT = Path(__file__).parents[1]
Curve = list[dict[str, Any]]


def calibration_images(corpus: Path, count: int) -> Any:
    """The first `count` images of a corpus, (N, 3, H, W) in [-1, 1]."""
    import numpy as np
    import polars as pl
    import torch
    from PIL import Image

    rows = pl.scan_parquet(sorted(corpus.glob("*.parquet"))).select("image").head(count).collect()
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows["image"]]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def run(start: str, seed: int, options: argparse.Namespace, settings: dict[str, Any], images: Any) -> Curve:
    """Train from one start with one seed, or read what an earlier call trained; return its step records."""
    from l2p_arch import convert
    from l2p_train import launch
    from l2p_train.config import config_from_mapping
    from l2p_train.metrics import read_metrics

    folder = options.out / start / f"seed-{seed}"
    surgery = settings["surgery"] | {"initialisation": start}
    if not (folder / "initial").exists():
        source = (options.config.parent / settings["source"]["model"]).resolve()
        convert(source, folder / "initial", seed=seed, calibration_images=images, **surgery)
    train = settings["train"] | {
        "model": str(folder / "initial"),
        "corpus": str(options.corpus),
        "output": str(folder / "train"),
        "seed": seed,
        "steps": options.steps,
        "max_sequence_length": settings["source"]["max_sequence_length"],
        "checkpoint_every": 100,
        "sample_every": 0,
        "log_every": max(1, min(10, options.steps // 20)),
    }
    train["warmup_steps"] = max(
        1, settings["train"]["warmup_steps"] * options.steps // settings["train"]["steps"]
    )
    train.pop("processes", None)

    def show(event: dict[str, Any]) -> None:
        if event.get("event") == "step" and event["step"] % 50 == 0:
            print(f"{start}, seed {seed}, step {event['step']}: {event['loss']:.4f}", file=sys.stderr)

    launch(config_from_mapping(train), processes=options.processes, on_event=show)
    records = read_metrics(folder / "train/metrics.jsonl")
    return [
        {"step": record["step"], "loss": record["loss"], "by_sigma": record["loss_by_sigma"]}
        for record in records
        if record.get("event") == "step"
    ]


def only_experiment(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Raise unless OUT is new or holds runs of the same settings: others must not be read as these."""
    from l2p_train.errors import TrainError

    tables = {name: settings[name] for name in ("source", "surgery", "train")}
    mine = tables | {
        "steps": options.steps,
        "images": options.images,
        "corpus": str(options.corpus.resolve()),
    }
    path = options.out / "settings.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name, value in mine.items() if theirs.get(name) != value]
    if changed:
        raise TrainError(
            f"{options.out} holds runs of other settings ({', '.join(changed)}; see {path}), "
            "which would be read as these; give another --out"
        )


def window(curve: Curve, first: int, last: int) -> list[float | None]:
    """Mean of the whole loss, then of its four quarters of sigma, over the steps in (first, last].

    None where no sample of a quarter was drawn.
    """
    inside = [record for record in curve if first < record["step"] <= last]
    rows = [[record["loss"], *record["by_sigma"]] for record in inside]
    columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return [statistics.fmean(column) if column else None for column in columns]


def summarise(curves: dict[str, dict[int, Curve]], steps: int) -> dict[str, Any]:
    """Per start: mean and spread (half the range) over seeds at a quarter, a half and the end of the run."""
    result: dict[str, Any] = {}
    for start, by_seed in curves.items():
        result[start] = {}
        for last in (steps // 4, steps // 2, steps):
            rows = [window(curve, last - max(20, steps // 10), last) for curve in by_seed.values()]
            columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
            result[start][f"step {last}"] = {
                "mean": [round(statistics.fmean(c), 4) if c else None for c in columns],
                "half_range": [round((max(c) - min(c)) / 2, 4) if c else None for c in columns],
            }
    return result


def table(summary: dict[str, Any]) -> Iterable[str]:
    """Lines of a Markdown table."""
    yield "| start | at | eq. 5 | " + " | ".join(QUARTERS) + " |"
    yield "|---" * 7 + "|"
    for start, moments in summary.items():
        for moment, values in moments.items():
            pairs = zip(values["mean"], values["half_range"], strict=True)
            cells = ("" if mean is None else f"{mean:.3f} ± {spread:.3f}" for mean, spread in pairs)
            yield f"| {start} | {moment} | " + " | ".join(cells) + " |"


def draw(curves: dict[str, dict[int, Curve]], path: Path) -> None:
    """Curves of the whole loss and of its lowest and highest quarter of sigma; bands span the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5))
    panels = (("all", None), (QUARTERS[0], 0), (QUARTERS[3], 3))
    for axis, (title, quarter) in zip(axes, panels, strict=True):
        for start, by_seed in curves.items():
            values = np.array(
                [
                    [record["loss"] if quarter is None else record["by_sigma"][quarter] for record in curve]
                    for curve in by_seed.values()
                ],
                dtype=float,  # None becomes nan, a gap in the curve
            )
            steps = [record["step"] for record in next(iter(by_seed.values()))]
            kernel = np.ones(3) / 3  # a running mean over three records
            smooth = np.array([np.convolve(np.pad(row, 1, mode="edge"), kernel, "valid") for row in values])
            (line,) = axis.plot(steps, smooth.mean(0), marker=".", label=f"{start} (n = {len(values)})")
            axis.fill_between(steps, smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.2)
        axis.set(title=f"eq. 5, {title}", xlabel="step", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="corpus directory, such as a quickstart run's")
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs/mini.toml", help="settings to train in"
    )
    parser.add_argument(
        "--starts",
        nargs="+",
        default=list(STARTS),
        help="values of initialisation, each one name or several joined with + (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=300, help="of each run, 4 or more (default 300)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=64, help="calibration images (default 64)")
    parser.add_argument("--out", type=Path, default=Path("runs/initialisation"))
    options = parser.parse_args()
    if options.steps < 4:
        parser.error(f"--steps {options.steps} leaves no quarter of a run to look at; give 4 or more")
    if not any(options.corpus.glob("*.parquet")):
        parser.error(f"no corpus in {options.corpus}: no *.parquet file there")
    return options


def main() -> int:
    """Train what is missing, summarise, draw."""
    from l2p_arch import ArchError
    from l2p_arch.initialisation import check_initialisation
    from l2p_train.errors import Interrupted, TrainError

    options = parse()
    settings = tomllib.loads(options.config.read_text(encoding="utf-8"))
    images = calibration_images(options.corpus, options.images)
    curves: dict[str, dict[int, Curve]] = {}
    try:
        for start in options.starts:
            check_initialisation(start, images, settings["surgery"]["head_channels"])
        only_experiment(options, settings)
        for done, seed in enumerate(options.seeds, start=1):  # after each, all starts can be compared
            for start in options.starts:
                curves.setdefault(start, {})[seed] = run(start, seed, options, settings, images)
            summary = summarise(curves, options.steps)
            result = {"steps": options.steps, "seeds": options.seeds[:done], "summary": summary}
            text = json.dumps(result | {"curves": curves}, indent=1, allow_nan=False) + "\n"
            (options.out / "result.json").write_text(text, encoding="utf-8")
            draw(curves, options.out / "curves.png")
    except (ArchError, TrainError, Interrupted) as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 2)
    print("\n".join(table(summary)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

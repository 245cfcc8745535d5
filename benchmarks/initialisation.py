"""What the starts of the new ends are worth: convergence curves of eq. 5 from each, on the miniature.

    uv run python benchmarks/initialisation.py runs/mini/corpus [--starts default fitted fitted+detail]
        [--steps 300] [--seeds 0 1 2] [--out runs/initialisation]

Trains a few hundred steps from every start with every seed, in the settings of configs/mini.toml. A seed
fixes the images, the noise and the sigmas of every step: starts differ in nothing but their first weights.
Running the same command again resumes; more starts or seeds may be added later. Writes OUT/result.json and
OUT/curves.png, and prints one table: the mean of eq. 5 in a window of steps, over seeds, with the spread.
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

STARTS = ("default", "zero-output", "detail", "fitted", "fitted+detail")
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
        source = (ROOT / "configs" / settings["source"]["model"]).resolve()
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
        "log_every": 10,
    }
    train["warmup_steps"] = max(
        1, settings["train"]["warmup_steps"] * options.steps // settings["train"]["steps"]
    )
    train.pop("processes")

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


def window(curve: Curve, first: int, last: int) -> list[float]:
    """Mean of the whole loss, then of its four quarters of sigma, over the steps in (first, last]."""
    inside = [record for record in curve if first < record["step"] <= last]
    columns = [[record["loss"] for record in inside]]
    columns += [
        [record["by_sigma"][n] for record in inside if record["by_sigma"][n] is not None] for n in range(4)
    ]
    return [statistics.fmean(column) if column else float("nan") for column in columns]


def summarise(curves: dict[str, dict[int, Curve]], steps: int) -> dict[str, Any]:
    """Per start: mean and spread (half the range) over seeds at a quarter, a half and the end of the run."""
    result: dict[str, Any] = {}
    for start, by_seed in curves.items():
        result[start] = {}
        for last in (steps // 4, steps // 2, steps):
            rows = [window(curve, last - max(20, steps // 10), last) for curve in by_seed.values()]
            columns = list(zip(*rows, strict=True))
            result[start][f"step {last}"] = {
                "mean": [round(statistics.fmean(column), 4) for column in columns],
                "half_range": [round((max(column) - min(column)) / 2, 4) for column in columns],
            }
    return result


def table(summary: dict[str, Any]) -> Iterable[str]:
    """Lines of a Markdown table."""
    yield "| start | at | eq. 5 | " + " | ".join(QUARTERS) + " |"
    yield "|---" * 7 + "|"
    for start, moments in summary.items():
        for moment, values in moments.items():
            pairs = zip(values["mean"], values["half_range"], strict=True)
            yield f"| {start} | {moment} | " + " | ".join(f"{a:.3f} ± {b:.3f}" for a, b in pairs) + " |"


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
                    [r["loss"] if quarter is None else r["by_sigma"][quarter] or np.nan for r in curve]
                    for curve in by_seed.values()
                ],
                dtype=float,
            )
            steps = [record["step"] for record in next(iter(by_seed.values()))]
            kernel = np.ones(3) / 3  # a running mean over three records
            smooth = np.array([np.convolve(np.pad(row, 1, mode="edge"), kernel, "valid") for row in values])
            (line,) = axis.plot(steps, smooth.mean(0), label=f"{start} (n = {len(values)})")
            axis.fill_between(steps, smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.2)
        axis.set(title=f"eq. 5, {title}", xlabel="step", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Train what is missing, summarise, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="corpus directory, such as a quickstart run's")
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs/mini.toml", help="settings to train in"
    )
    parser.add_argument("--starts", nargs="+", default=list(STARTS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=64, help="calibration images (default 64)")
    parser.add_argument("--out", type=Path, default=Path("runs/initialisation"))
    options = parser.parse_args()
    settings = tomllib.loads(options.config.read_text(encoding="utf-8"))
    images = calibration_images(options.corpus, options.images)
    curves: dict[str, dict[int, Curve]] = {}
    for seed in options.seeds:  # seed by seed: after the first, all starts can be compared already
        for start in options.starts:
            curves.setdefault(start, {})[seed] = run(start, seed, options, settings, images)
        summary = summarise(curves, options.steps)
        result = {"steps": options.steps, "seeds": options.seeds, "summary": summary, "curves": curves}
        (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(curves, options.out / "curves.png")
    print("\n".join(table(summary)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

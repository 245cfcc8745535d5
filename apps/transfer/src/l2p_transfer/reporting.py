"""The page of a run: `l2p_eval`'s report, filled from the run directory."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from l2p_eval.geneval import GenEvalScores
from l2p_eval.report.evaluated import failures_of, first_per_tag, frechet_of, pairs_of, sampling_in_words
from l2p_eval.report.page import RunReport, Table, duration, write_report
from l2p_eval.report.tables import (
    dropped_table,
    freeze_table,
    provenance_in_words,
    stage_costs,
    surgery_tables,
)
from l2p_eval.report.trained import loss_of, progress_of
from l2p_run.places import read_json, read_json_if_whole
from l2p_run.stages import read_marker

from l2p_transfer.config import Config
from l2p_transfer.paths import RunPaths
from l2p_transfer.sizes import in_words, painted_sizes, trained_sizes


def write_run_report(config: Config, paths: RunPaths, titles: Mapping[str, str]) -> Path:
    """Writes report.html and report.md; returns the page.

    Args:
        titles: of the stages, by name and in order.
    """
    results = read_json(paths.results)
    names = [path.stem for path in sorted((paths.root / "stages").glob("*.json"))]
    markers = {name: marker for name in names if (marker := read_marker(paths.root, name))}
    pairs = list(pairs_of(results, paths.evaluation))
    report = RunReport(
        title=config.report.title or config.run.output.name,
        summary=_summary(config, markers),
        source_name=config.source.model.name,
        facts=_facts(markers),
        pairs=first_per_tag(pairs, config.report.pairs_per_tag),
        failures=failures_of(pairs, config.report.failures),
        source_scores=GenEvalScores(**results["source"]["scores"]),
        l2p_scores=GenEvalScores(**results["l2p"]["scores"]),
        detector=results["detector"],
        sampling={
            name: sampling_in_words(results[key]["sampling"])
            for name, key in (("Source", "source"), ("L2P", "l2p"))
        },
        frechet=[frechet_of(results["frechet"])],
        loss=loss_of(paths.train / "metrics.jsonl"),
        progress=progress_of(
            paths.train / "samples", paths.samples, rows=1 if config.train.sample_prompts else 2
        ),
        stages=stage_costs(markers, titles),
        tables=list(_tables(paths, markers)),
        config=paths.config.read_text(encoding="utf-8"),
        provenance=provenance_in_words(read_json(paths.provenance)),
    )
    return write_report(report, paths.root)


def _summary(config: Config, markers: Mapping[str, Any]) -> str:
    images = markers["images"]["values"]["images"]
    resized = f", resized to {in_words(trained_sizes(config))}" if config.train.resolution else ""
    return (
        f"{config.source.model.name}, a latent diffusion model, became a pixel-space model with patch size"
        f" {config.surgery.patch_size} and no VAE, trained for {config.train.steps:,} steps on {images:,}"
        f" of its own images of {in_words(painted_sizes(config))}{resized}."
    )


def _facts(markers: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    seconds = sum(marker["seconds"] for name, marker in markers.items() if name != "report")
    training = markers["training"]["values"]
    trainable = training["trainable_parameters"]
    total = trainable + training["frozen_parameters"]
    return [
        ("from prompts to scores", duration(seconds), ""),
        ("parameters train", _millions(trainable), f"of {_millions(total)}"),
    ]


def _tables(paths: RunPaths, markers: Mapping[str, Any]) -> Iterator[Table]:
    """The surgery, what trained, what was dropped."""
    report = read_json_if_whole(paths.initial / "surgery_report.json")
    yield from surgery_tables(markers["surgery"]["values"], report)
    if freeze := read_json_if_whole(paths.train / "freeze_table.json"):
        yield freeze_table(freeze)
    if markers["filter"]["values"]["reasons"]:
        yield dropped_table(markers["filter"]["values"])


def _millions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"

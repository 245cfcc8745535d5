"""The page of a run directory: everything that its stages left there, as a `RunReport`.

Read are `stages/*.json`, `evaluation/`, `train/`, `initial/surgery_report.json`, `config.toml` and
`provenance.json`, as l2p-transfer writes them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_run.places import read_json, read_json_if_whole
from l2p_run.stages import read_marker

from l2p_eval.geneval import GenEvalScores
from l2p_eval.report.evaluated import failures_of, first_per_tag, frechet_of, pairs_of, sampling_in_words
from l2p_eval.report.page import RunReport, Table, duration
from l2p_eval.report.tables import (
    dropped_table,
    freeze_table,
    provenance_in_words,
    stage_costs,
    surgery_tables,
)
from l2p_eval.report.trained import loss_of, progress_of


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the page shows that stands in no file of the run.

    Attributes:
        titles: of the stages, by name and in order.
        patch_size: px, of the L2P model.
        sample_rows: of the trainer's grids; 2 where the source's images are the upper one, else 1.
    """

    title: str
    summary: str
    source_name: str
    titles: Mapping[str, str]
    patch_size: int
    pairs_per_tag: int = 4
    failures: int = 12
    sample_rows: int = 2


def markers_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each stage of a run left in its marker, by name."""
    names = [path.stem for path in sorted((folder / "stages").glob("*.json"))]
    return {name: marker for name in names if (marker := read_marker(folder, name))}


def report_of(folder: Path, shown: Shown) -> RunReport:
    """Return the report of a run that has been evaluated; writes strips of its training samples into
    `samples/`.
    """
    results, markers = read_json(folder / "evaluation" / "results.json"), markers_of(folder)
    pairs = list(pairs_of(results, folder / "evaluation"))
    floor = results.get("frechet_floor")  # not in runs of the first version, as are patch grids
    return RunReport(
        title=shown.title,
        summary=shown.summary,
        source_name=shown.source_name,
        facts=_facts(markers),
        pairs=first_per_tag(pairs, shown.pairs_per_tag),
        failures=failures_of(pairs, shown.failures),
        source_scores=GenEvalScores(**results["source"]["scores"]),
        l2p_scores=GenEvalScores(**results["l2p"]["scores"]),
        detector=results["detector"],
        sampling={
            name: sampling_in_words(results[key]["sampling"])
            for name, key in (("Source", "source"), ("L2P", "l2p"))
        },
        frechet=[frechet_of(results["frechet"])],
        frechet_floor=frechet_of(floor) if floor else None,
        patch_grids={name: grid["value"] for name, grid in results.get("patch_grid", {}).items()},
        patch_size=shown.patch_size,
        loss=loss_of(folder / "train" / "metrics.jsonl"),
        progress=progress_of(folder / "train" / "samples", folder / "samples", rows=shown.sample_rows),
        stages=stage_costs(markers, shown.titles),
        tables=list(_tables(folder, markers)),
        config=(folder / "config.toml").read_text(encoding="utf-8"),
        provenance=provenance_in_words(read_json(folder / "provenance.json")),
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


def _tables(folder: Path, markers: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the surgery, what trained, what was dropped."""
    report = read_json_if_whole(folder / "initial" / "surgery_report.json")
    yield from surgery_tables(markers["surgery"]["values"], report)
    if freeze := read_json_if_whole(folder / "train" / "freeze_table.json"):
        yield freeze_table(freeze)
    if markers["filter"]["values"]["reasons"]:
        yield dropped_table(markers["filter"]["values"])


def _millions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"

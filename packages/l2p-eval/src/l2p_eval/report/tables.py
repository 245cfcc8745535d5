"""Tables of a transfer's page, from what its stages leave."""

from collections.abc import Iterator, Mapping
from typing import Any

from l2p_eval.report.page import StageCost, Table

_SEAMLESSNESS = {
    "pixels_from_latents": "R^2 of pixels, decoded linearly from the latents",
    "pixels_from_subspace": "R^2 of pixels from the subspace that carries the trunk's noise",
    "latents_from_subspace": "R^2 of the latents by the same subspace, in clean pixels",
    "latents_from_reading": "R^2 of the latents as the trunk reads them, in clean pixels",
    "scale": "s: the source's noise shift is multiplied by it, in training and sampling",
}


def stage_costs(markers: Mapping[str, Any], titles: Mapping[str, str]) -> list[StageCost]:
    """Return what each stage took.

    Args:
        markers: of the stages that ran, by name.
        titles: by name and in order.
    """
    return [
        StageCost(
            title=title,
            seconds=markers[name]["seconds"],
            peak_bytes=markers[name]["peak_bytes"],
            note=markers[name]["note"],
        )
        for name, title in titles.items()
        if name in markers and name != "report"
    ]


def freeze_table(freeze: Mapping[str, Any]) -> Table:
    """Return what trained, from the trainer's freeze_table.json."""
    rows = [(r["module"], r["role"], f"{r['trainable']:,}", f"{r['frozen']:,}") for r in freeze["rows"]]
    total = ("all", "", f"{freeze['trainable_parameters']:,}", f"{freeze['frozen_parameters']:,}")
    return Table(
        title="Freezing: what trained",
        columns=("module", "role", "parameters trained", "frozen"),
        rows=[*rows, total],
        note="Frozen tensors are bit-identical before and after.",
    )


def dropped_table(values: Mapping[str, Any]) -> Table:
    """Return why prompts were dropped, from what the filter counted: "kept", "dropped", "reasons"."""
    return Table(
        title="Dropped prompts",
        columns=("reason", "prompts"),
        rows=[(reason, f"{count:,}") for reason, count in values["reasons"].items()],
        note=f"{values['kept']:,} of {values['kept'] + values['dropped']:,} prompts were kept.",
    )


def surgery_tables(values: Mapping[str, Any], report: Mapping[str, Any] | None) -> Iterator[Table]:
    """Yield what became of the source's tensors, and how seamless it is where that was measured.

    Args:
        values: "counts" of tensors by what became of them, and "measures".
        report: surgery_report.json, for every single tensor.
    """
    meaning = {
        "inherited": "taken over from the source, unchanged",
        "new": "pixel embedder and Detailer Head",
        "dropped": "the source's latent ends",
    }
    counts, measures = values["counts"], values.get("measures") or {}
    if "scale" in measures:
        meaning["new"] = "maps between pixels and latents, and Detailer Head"
        meaning["dropped"] = "nothing: the aligned recipe keeps the whole transformer"
    yield Table(
        title="Surgery",
        columns=("tensors", "number", "parameters", "what"),
        rows=[(k, f"{v['tensors']:,}", f"{v['parameters']:,}", meaning[k]) for k, v in counts.items()],
        note="Every tensor of the source transformer is accounted for.",
    )
    if "scale" in measures:
        yield Table(
            title="How seamless the source is",
            columns=("measure", "value", "what"),
            rows=[(name, f"{measures[name]:.3f}", what) for name, what in _SEAMLESSNESS.items()],
            note="Measured by the surgery, before any training.",
        )
    if report:
        rows = [
            (record["name"], " x ".join(str(size) for size in record["shape"]), record["dtype"], kind)
            for kind in meaning
            for record in report[kind]
        ]
        yield Table(
            title="Every tensor of the surgery",
            columns=("name", "shape", "dtype", "what became of it"),
            rows=rows,
            note=f"{len(rows)} tensors",
            folded=True,
        )


def provenance_in_words(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the lines of a run's provenance.json."""
    machine = row["machine"]
    return {
        "command": row["command"],
        "date": row["started"],
        "commit": row["commit"] or "installed packages",
        "machine": ", ".join(
            [machine["processor"], f"{machine['cores']} cores", *(machine["gpus"] or ["no GPU"])]
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in row["packages"].items()),
        "config": row["config_sha256"][:16],
    }

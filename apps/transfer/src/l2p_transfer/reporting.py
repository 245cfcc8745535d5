"""Fills the report of `l2p_eval` from a run directory."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from l2p_eval.geneval import GenEvalScores
from l2p_eval.layout import open_image
from l2p_eval.metrics.frechet import FrechetResult
from l2p_eval.report.page import Pair, Picture, RunReport, StageCost, Table, duration, write_report
from l2p_run.places import read_json, read_json_if_whole
from l2p_run.sizes import Size
from l2p_run.stages import read_marker

from l2p_transfer.config import Config
from l2p_transfer.paths import RunPaths
from l2p_transfer.sizes import in_words, painted_sizes, trained_sizes

PROGRESS_PICTURES = 6
GRID_GAP = 2  # px between the pictures of a trainer's sample grid


def write_run_report(config: Config, paths: RunPaths, titles: Mapping[str, str]) -> Path:
    """Writes report.html and report.md; returns the page.

    Args:
        titles: of the stages, by name and in order.
    """
    results = read_json(paths.results)
    names = [path.stem for path in sorted((paths.root / "stages").glob("*.json"))]
    markers = {name: marker for name in names if (marker := read_marker(paths.root, name))}
    pairs = list(_pairs(results, paths))
    report = RunReport(
        title=config.report.title or config.run.output.name,
        summary=_summary(config, markers),
        source_name=config.source.model.name,
        facts=_facts(markers),
        pairs=_first_per_tag(pairs, config.report.pairs_per_tag),
        failures=_failures(pairs, config.report.failures),
        source_scores=GenEvalScores(**results["source"]["scores"]),
        l2p_scores=GenEvalScores(**results["l2p"]["scores"]),
        detector=results["detector"],
        sampling={
            name: _sampling(results[key]["sampling"]) for name, key in (("Source", "source"), ("L2P", "l2p"))
        },
        frechet=[_frechet(results["frechet"])],
        loss=_loss(paths),
        progress=_progress(config, paths),
        stages=_costs(markers, titles),
        tables=list(_tables(paths, markers)),
        config=paths.config.read_text(encoding="utf-8"),
        provenance=_provenance(paths),
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


def _pairs(results: Mapping[str, Any], paths: RunPaths) -> Iterator[Pair]:
    """Every evaluated prompt and sample, source and L2P side by side."""
    per_prompt, seed = results["images_per_prompt"], results["seed"]
    for source, l2p in zip(results["source"]["images"], results["l2p"]["images"], strict=True):
        pictures = [
            Picture(path=paths.evaluation / name / row["path"], correct=row["correct"], reason=row["reason"])
            for name, row in (("source", source), ("l2p", l2p))
        ]
        yield Pair(
            prompt=l2p["prompt"],
            tag=l2p["tag"],
            seed=seed + l2p["prompt_index"] * per_prompt + l2p["sample"],
            source=pictures[0],
            l2p=pictures[1],
        )


def _first_per_tag(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """`count` pairs of each tag: the first different prompts, then further seeds of them."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.tag].append(pair)
    chosen = []
    for group in groups.values():
        first = {pair.prompt: pair for pair in reversed(group)}
        fresh = [pair for pair in group if first[pair.prompt] is pair]
        again = [pair for pair in group if first[pair.prompt] is not pair]
        chosen += [*fresh, *again][:count]
    return chosen


def _failures(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """L2P's failures in turn over the tags; first those that the source got right."""
    failed: dict[str, list[Pair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: not pair.source.correct):
        if not pair.l2p.correct:
            failed[pair.tag].append(pair)
    in_turn = (pair for row in zip_longest(*failed.values()) for pair in row if pair)
    return [pair for pair, _ in zip(in_turn, range(count), strict=False)]


def _frechet(row: Mapping[str, Any]) -> FrechetResult:
    names = {field.name for field in fields(FrechetResult)}
    return FrechetResult(**{key: value for key, value in row.items() if key in names})


def _sampling(options: Mapping[str, Any]) -> str:
    names = {"num_inference_steps": "steps", "guidance_scale": "guidance", "noise_shift": "noise shift"}
    parts = [f"{names[key]} {options[key]}" for key in names if options.get(key) is not None]
    if "width" in options:
        parts.append(in_words([Size(width=options["width"], height=options["height"])]))
    return ", ".join([*parts, str(options["dtype"])])


def _loss(paths: RunPaths) -> list[tuple[int, float]]:
    records = _lines(paths.train / "metrics.jsonl")
    return [(record["step"], record["loss"]) for record in records if record.get("event") == "step"]


def _progress(config: Config, paths: RunPaths) -> list[tuple[str, Path]]:
    """Strips of training samples, evenly chosen over the run, under the source's images of the same prompts.

    The trainer's grids have the source's images as their upper row, unless the user chose the prompts.
    """
    grids = sorted((paths.train / "samples").glob("step-*.png"))
    if len(grids) > PROGRESS_PICTURES:
        last = len(grids) - 1
        grids = [grids[round(i * last / (PROGRESS_PICTURES - 1))] for i in range(PROGRESS_PICTURES)]
    rows = 1 if config.train.sample_prompts else 2
    strips = [(f"step {int(path.stem.removeprefix('step-'))}", path, rows - 1) for path in grids]
    if grids and rows == 2:
        strips.insert(0, ("source", grids[-1], 0))
    return [(caption, _strip(caption, path, row, rows, paths)) for caption, path, row in strips]


def _strip(caption: str, grid: Path, row: int, rows: int, paths: RunPaths) -> Path:
    """Cuts one row out of a sample grid, and saves it among the run's samples."""
    image = open_image(grid)
    height = (image.height - GRID_GAP * (rows - 1)) // rows
    top = row * (height + GRID_GAP)
    path = paths.samples / f"training-{caption.replace(' ', '-')}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.crop((0, top, image.width, top + height)).save(path)
    return path


def _costs(markers: Mapping[str, Any], titles: Mapping[str, str]) -> list[StageCost]:
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


def _tables(paths: RunPaths, markers: Mapping[str, Any]) -> Iterator[Table]:
    yield from _surgery_tables(paths, markers)
    freeze = read_json_if_whole(paths.train / "freeze_table.json")
    if freeze:
        rows = [(r["module"], r["role"], f"{r['trainable']:,}", f"{r['frozen']:,}") for r in freeze["rows"]]
        total = ("all", "", f"{freeze['trainable_parameters']:,}", f"{freeze['frozen_parameters']:,}")
        yield Table(
            title="Freezing: what trained",
            columns=("module", "role", "parameters trained", "frozen"),
            rows=[*rows, total],
            note="Frozen tensors are bit-identical before and after.",
        )
    dropped = markers["filter"]["values"]
    if dropped["reasons"]:
        yield Table(
            title="Dropped prompts",
            columns=("reason", "prompts"),
            rows=[(reason, f"{count:,}") for reason, count in dropped["reasons"].items()],
            note=f"{dropped['kept']:,} of {dropped['kept'] + dropped['dropped']:,} prompts were kept.",
        )


_SEAMLESSNESS = {
    "pixels_from_latents": "R^2 of pixels, decoded linearly from the latents",
    "pixels_from_subspace": "R^2 of pixels from the subspace that carries the trunk's noise",
    "latents_from_subspace": "R^2 of the latents, as the trunk sees them in clean pixels",
    "scale": "s: the source's noise shift is multiplied by it, in training and sampling",
}


def _surgery_tables(paths: RunPaths, markers: Mapping[str, Any]) -> Iterator[Table]:
    meaning = {
        "inherited": "taken over from the source, unchanged",
        "new": "pixel embedder and Detailer Head",
        "dropped": "the source's latent ends",
    }
    values = markers["surgery"]["values"]
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
    report = read_json_if_whole(paths.initial / "surgery_report.json")
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


def _provenance(paths: RunPaths) -> dict[str, str]:
    row = read_json(paths.provenance)
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


def _lines(path: Path) -> list[dict[str, Any]]:
    """A JSON Lines file without a torn last line."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _millions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"

"""The stages of a transfer, in the order of Fig. 2 and Fig. 3 of the paper: each a function from the run to
its outcome.

A stage writes below the run directory only, and is safe to run again: it goes on where it stopped.
`runner.py` decides which stages still have to run.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l2p_data.errors import DataError
from l2p_data.prompt_settings import Place
from l2p_run.places import shorten, write_json
from l2p_run.progress import Progress
from l2p_run.stages import Outcome, Stage
from l2p_run.words import counted, rate

from l2p_transfer.config import Config
from l2p_transfer.errors import TransferError
from l2p_transfer.paths import RunPaths
from l2p_transfer.sizes import evaluated_size
from l2p_transfer.validation import check_held_out


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a stage may use."""

    config: Config
    paths: RunPaths


def write_prompts(run: Run, progress: Progress) -> Outcome:
    """Category tree or file -> prompt records (sec. 3.2)."""
    from l2p_data.prompt_settings import make_prompts
    from l2p_data.prompts.records import write_prompts as write

    config = run.config
    prompts = make_prompts(config.prompts, place_of(run), seed=config.run.seed, progress=progress)
    write(prompts, run.paths.prompts)
    categories = prompts["category"].n_unique()
    return Outcome(
        note=f"{counted(prompts.height, 'prompt')} in {counted(categories, 'category')}",
        values={"prompts": prompts.height, "categories": categories},
    )


def filter_prompts(run: Run, progress: Progress) -> Outcome:
    """Keep or drop every prompt, with a reason (sec. 3.2)."""
    from l2p_data.filters.filtering import filter_prompts as judge
    from l2p_data.filters.filtering import kept, reasons
    from l2p_data.prompts.records import read_prompts
    from l2p_data.prompts.records import write_prompts as write

    config = run.config
    judged = judge(read_prompts(run.paths.prompts), config.filter)
    if config.prompts.audit:
        from l2p_data.filters.audit import audit_prompts
        from l2p_data.prompt_settings import open_generator

        with open_generator(
            config.prompts, place_of(run), seed=config.run.seed, progress=progress
        ) as auditor:
            judged = audit_prompts(judged, auditor)
    write(judged, run.paths.filtered)  # first: the drops say what was wrong
    try:
        keep = kept(judged).height
    except DataError as error:
        where = shorten(run.paths.filtered)
        raise TransferError(
            f"{error} in {where}; then change [filter] or [prompts], and add --update"
        ) from None
    return Outcome(
        note=f"{keep:,} kept, {judged.height - keep:,} dropped",
        values={"kept": keep, "dropped": judged.height - keep, "reasons": reasons(judged)},
    )


def make_images(run: Run, progress: Progress) -> Outcome:
    """Let the source paint the corpus on Ray actors (sec. 3.2)."""
    from l2p_data.corpus.files import folder_exists, location
    from l2p_data.filters.filtering import kept
    from l2p_data.prompts.records import read_prompts
    from l2p_data.synthesis.ledger import release
    from l2p_data.synthesis.synthesize import SynthesisProgress, synthesize
    from l2p_run.devices import resolve_dtype

    prompts = kept(read_prompts(run.paths.filtered))
    check_held_out(run.config, prompts.height)
    source, cluster = run.config.source, run.config.cluster
    settings = run.config.images.synthesis(
        model=source.model,
        output=run.config.train.corpus,
        dtype=resolve_dtype(source.dtype),
        pipeline_kwargs=source.sampling,
        ray_address=cluster.address or None,
        worker_resources=cluster.synthesis_resources,
    )

    def report(state: SynthesisProgress) -> None:
        progress(state.images, state.total, f"{state.failed} failed" if state.failed else "")

    corpus = location(run.config.train.corpus)
    if folder_exists(corpus):
        release(corpus)  # --update may have changed what a killed run began with
    manifest = synthesize(prompts, settings, on_progress=report)
    failed, cut = len(manifest.failures), manifest.cut_prompts
    longer = (
        f"; the text encoder cut {counted(len(cut), 'prompt')}, the first before {cut[0]!r}" if cut else ""
    )
    return Outcome(
        note=f"{counted(manifest.rows, 'image')} in {counted(len(manifest.shards), 'shard')}"
        + (f", {failed} failed" if failed else "")
        + longer,
        values={
            "images": manifest.rows,
            "shards": len(manifest.shards),
            "failed": failed,
            **({"cut_prompts": len(cut)} if cut else {}),
        },
    )


def operate(run: Run, progress: Progress) -> Outcome:
    """Turn the source's transformer into the pixel-space initialisation (sec. 3.3)."""
    config = run.config
    report = config.surgery.operate(config.source.model, run.paths.initial, config.train)
    counts = report.counts()
    notes = [f"{value['tensors']} tensors {kind}" for kind, value in counts.items()]
    if config.surgery.recipe == "aligned":
        kept = report.measures["pixels_from_latents"]
        notes.append(f"R^2 {kept:.2f} of pixels from latents, noise shift x {report.measures['scale']:.2f}")
    return Outcome(
        note=", ".join(notes),
        values={"family": report.family, "counts": counts, "measures": dict(report.measures)},
    )


def train(run: Run, progress: Progress) -> Outcome:
    """Train by eq. 5 on the source's own images, everything but the shallow layers frozen (sec. 3.3)."""
    from l2p_train.run.launcher import launch

    from l2p_transfer.config import resolve_processes

    steps = run.config.train.steps

    def report(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            progress(
                event["step"],
                steps,
                f"loss {event['loss']:.4f}, {rate(event['images_per_second'])} images/s",
            )
        elif event["event"] == "embed":
            progress(0, steps, f"text {event['done']}/{event['of']}")

    if run.config.cluster.address:
        from l2p_train.run.cluster import train_on_cluster

        cluster = run.config.cluster
        result = train_on_cluster(
            run.config.train,
            cluster.address,
            processes=run.config.processes,
            cpus_per_process=cluster.cpus_per_process,
            max_failures=cluster.max_failures,
            resources=cluster.training_resources,
            on_event=report,
            called={
                "address": "cluster.address",
                "processes": "train.processes",
                "resources": "cluster.training_resources",
            },
        )
    else:
        result = launch(run.config.train, processes=resolve_processes(run.config), on_event=report)
    _write_sampling_defaults(run)
    link_model(run.paths)
    speed = f"{rate(result.images_per_second)} images/s"
    return Outcome(
        note=f"{counted(result.steps, 'step')}, loss {result.loss:.3f}, {speed}",
        values=asdict(result) | {"model": "model"},
    )


def evaluate(run: Run, progress: Progress) -> Outcome:
    """Score source and L2P model by GenEval, and the Frechet distance between their images (sec. 4)."""
    from l2p_transfer.evaluation import evaluate_run

    _write_sampling_defaults(run)  # [evaluate] may have changed since the training
    results = evaluate_run(run.config, run.paths, progress)
    write_json(run.paths.results, results)
    source, l2p = results["source"]["scores"]["overall"], results["l2p"]["scores"]["overall"]
    kept = (
        f"{100 * results['retention']:.1f} % kept" if results["retention"] is not None else "nothing to keep"
    )
    if results["retention_odd"]:
        kept += ", more than the source has: is it the model that painted the corpus?"
    return Outcome(
        note=f"L2P {l2p:.3f}, source {source:.3f}: {kept}",
        values={
            "source": source,
            "l2p": l2p,
            "retention": results["retention"],
            results["frechet"]["name"]: results["frechet"]["value"],
            **({"frechet_floor": floor["value"]} if (floor := results.get("frechet_floor")) else {}),
            **{f"patch_grid_{name}": grid["value"] for name, grid in results["patch_grid"].items()},
        },
    )


def report(run: Run, progress: Progress) -> Outcome:
    """Write `report.html` and `report.md`."""
    from l2p_transfer.reporting import write_run_report

    page = write_run_report(run.config, run.paths, {stage.name: stage.title for stage in STAGES})
    return Outcome(note=str(shorten(page)), values={})


STAGES: tuple[Stage[Run], ...] = (
    Stage(name="prompts", title="Prompts", tables=("run", "prompts"), execute=write_prompts),
    Stage(name="filter", title="Filter", tables=("filter",), execute=filter_prompts),
    Stage(name="images", title="Images from the source", tables=("source", "images"), execute=make_images),
    Stage(name="surgery", title="Surgery", tables=("surgery",), execute=operate),
    Stage(name="training", title="Training", tables=("train",), execute=train),
    Stage(name="evaluation", title="Evaluation", tables=("evaluate",), execute=evaluate),
    Stage(name="report", title="Report", tables=("report",), execute=report),
)


# ---------------------------------------------------------------------------------------------- parts


def place_of(run: Run) -> Place:
    """Return where an LLM runs, and where another machine would look for its answers."""
    storage, cluster = run.config.run.storage, run.config.cluster
    return Place(
        journal=f"{storage}/prompts/journal" if storage else run.paths.prompts.parent / "journal",
        api_key=os.environ.get("OPENAI_API_KEY"),
        ray_address=cluster.address or None,
        replica_resources=cluster.llm_resources,
    )


def _write_sampling_defaults(run: Run) -> None:
    """Write how to sample the model beside its weights: what `l2p-generate` uses when it is told nothing."""
    section = run.config.evaluate
    width, height = evaluated_size(run.config)
    defaults = {
        "height": height,
        "width": width,
        "num_inference_steps": section.num_inference_steps,
        "guidance_scale": section.guidance_scale,
        "noise_shift": section.noise_shift,
    }
    write_json(run.config.train.output / "model" / "sampling.json", defaults)


def link_model(paths: RunPaths) -> None:
    """Link `model` to `train/model`."""
    if paths.model.is_symlink():
        paths.model.unlink()
    elif paths.model.exists():
        raise TransferError(f"{paths.model} is in the way of the trained model; move it away and run again")
    os.symlink(Path("train") / "model", paths.model)

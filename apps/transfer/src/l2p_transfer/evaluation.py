"""The evaluation stage: paint, judge, compare."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_arch.sampling.painter import Painter
from l2p_eval.geneval import read_metadata
from l2p_eval.metrics.features import load_extractor
from l2p_eval.painting import Job, Model, Pictures, default_workers, generate_images, plan_jobs
from l2p_eval.scores import Score, frechet, geneval, retention
from l2p_run.cluster import ray_session, workers_that_fit
from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.hashes import of_file
from l2p_run.sizes import Size

from l2p_transfer.config import Config
from l2p_transfer.detectors import load_detector
from l2p_transfer.paths import RunPaths
from l2p_transfer.sizes import evaluated_size, source_size

Progress = Callable[[float, float, str], None]


def evaluate_run(config: Config, paths: RunPaths, progress: Progress) -> dict[str, Any]:
    """Scores the source and the L2P model on the same prompts and seeds; the content of results.json."""
    section = config.evaluate
    prompts = read_metadata(section.metadata)
    eyes = load_detector(section)
    extractor = load_extractor(section.features).to(choose_device())
    jobs = plan_jobs([prompt.prompt for prompt in prompts], section.images_per_prompt, section.seed)
    results: dict[str, Any] = {
        "detector": eyes.description,
        "metadata": {
            "file": section.metadata.name,
            "sha256": of_file(section.metadata),
        },
        "images_per_prompt": section.images_per_prompt,
        "seed": section.seed,
    }
    pictures: dict[str, Pictures] = {}
    scored: dict[str, Score] = {}
    for name, painted in (("source", source_model(config)), ("l2p", l2p_model(config, paths))):
        pictures[name] = _paint(painted, jobs, paths.evaluation / name, config, progress)
        scored[name] = geneval(
            pictures[name],
            eyes.detector,
            colors=eyes.colors,
            prompts=prompts,
            images_per_prompt=section.images_per_prompt,
            progress=progress,
        ).whole()
        results[name] = {
            "sampling": dict(painted.sampling),
            **scored[name].details,
        }
    reference = pictures["source"].paths
    distance = frechet(pictures["l2p"], extractor, reference=reference, progress=progress)
    results["frechet"] = distance.details["result"]
    kept = retention(scored["l2p"].headline, scored["source"].headline, images=len(jobs))
    results["retention"] = kept.share
    results["warnings"] = [f"{name}: {text}" for name in scored for text in scored[name].warnings]
    results["warnings"] += [kept.note] if kept.note else []
    return results


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A model of the evaluation: what paints, and how it samples, for results.json."""

    title: str  # for progress
    model: Model
    sampling: Mapping[str, Any]


def source_model(config: Config) -> Painted:
    """The source, sampled as for the corpus."""
    return _painted(
        "source",
        config.source.model,
        source_size(config),
        config.source.dtype,
        config,
        config.source.sampling,
    )


def l2p_model(config: Config, paths: RunPaths) -> Painted:
    """The trained model, sampled as [evaluate] says."""
    section = config.evaluate
    options = {
        "num_inference_steps": section.num_inference_steps,
        "guidance_scale": section.guidance_scale,
        "noise_shift": section.noise_shift,
        "max_sequence_length": config.source.max_sequence_length,
    }
    model = paths.model.resolve()
    return _painted("l2p", model, evaluated_size(config), section.dtype, config, options)


def _painted(
    kind: str, directory: Path, size: Size, dtype: str, config: Config, options: Mapping[str, Any]
) -> Painted:
    from l2p_data.corpus.identity import model_fingerprint

    side = {"width": size.width, "height": size.height}
    dtype = resolve_dtype(dtype)
    painter = Painter(
        directory=directory,
        dtype=dtype,
        options={**options, **side},
        cpu_offload=config.evaluate.cpu_offload,
    )
    # What defines its images beside prompts and seeds; a directory may be moved, and memory saved.
    settings = {
        "kind": kind,
        "fingerprint": model_fingerprint(directory),
        "dtype": dtype,
        "options": dict(options),
        **side,
    }
    return Painted(
        title="L2P" if kind == "l2p" else "source",
        model=Model(load=painter, settings=settings),
        sampling={**options, "dtype": dtype, **side},
    )


def _paint(painted: Painted, jobs: list[Job], folder: Path, config: Config, progress: Progress) -> Pictures:
    with painting(config) as place:
        files = generate_images(
            painted.model.load,
            jobs,
            folder,
            settings=painted.model.settings,
            batch_size=config.evaluate.batch_size,
            replace=True,  # a run evaluates what it trained last
            on_image=lambda done, total: progress(done, total, f"{painted.title} paints"),
            **place,
        )
    return Pictures(
        name=painted.title,
        folder=folder,
        paths=files,
        prompts=[job.prompt for job in jobs],
        settings=painted.model.settings,
    )


@contextmanager
def painting(config: Config) -> Iterator[dict[str, Any]]:
    """Where the evaluation paints, as arguments of `generate_images`: here, or on the cluster's nodes."""
    workers, cluster = config.evaluate.workers, config.cluster
    # Its images come back through a folder that all nodes share; `storage` is for those that share none.
    if not cluster.address or workers == 0 or (config.run.storage and workers is None):
        yield {"workers": default_workers() if workers is None else workers}
        return
    wanted = cluster.evaluation_resources
    with ray_session(cluster.address, setting="cluster.address") as ray:
        most = workers_that_fit(ray.cluster_resources(), wanted, setting="cluster.evaluation_resources")
        yield {"executor": "ray", "workers": workers or most, "resources": wanted}

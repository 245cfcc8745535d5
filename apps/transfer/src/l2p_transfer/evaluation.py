"""The evaluation stage: paint, judge, compare."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from l2p_eval.geneval import read_metadata
from l2p_eval.metrics.features import FeatureExtractor, load_extractor
from l2p_eval.painting import Job, Pictures, generate_images, plan_jobs
from l2p_eval.scores import Score, frechet, geneval, retention
from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.hashes import of_file

from l2p_transfer.cluster import painting
from l2p_transfer.config import Config
from l2p_transfer.detectors import load_detector
from l2p_transfer.generation import Painter
from l2p_transfer.paths import RunPaths
from l2p_transfer.sizes import evaluated_size, source_size

Progress = Callable[[float, float, str], None]


def evaluate_run(config: Config, paths: RunPaths, progress: Progress) -> dict[str, Any]:
    """Scores the source and the L2P model on the same prompts and seeds; the content of results.json."""
    section = config.evaluate
    prompts = read_metadata(section.metadata)
    eyes = load_detector(section)
    extractor = features_on(choose_device(), section.features)
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
    for name, painter in painters(config, paths).items():
        pictures[name] = _paint(painter, jobs, paths.evaluation / name, config, progress)
        scored[name] = geneval(
            pictures[name],
            eyes.detector,
            colors=eyes.colors,
            prompts=prompts,
            images_per_prompt=section.images_per_prompt,
            progress=progress,
        ).whole()
        results[name] = {
            "sampling": dict(painter.options)
            | {"dtype": painter.dtype, "width": painter.width, "height": painter.height},
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


def features_on(device: str, name: str) -> FeatureExtractor:
    """The network of the Frechet distance, on a device."""
    extractor = load_extractor(name)
    extractor.network.to(device)
    return extractor


def painters(config: Config, paths: RunPaths) -> dict[str, Painter]:
    """The two models and how each samples."""
    from l2p_data.corpus.identity import model_fingerprint

    section = config.evaluate
    source_width, source_height = source_size(config)
    width, height = evaluated_size(config)
    model = paths.model.resolve()
    return {
        "source": Painter(
            kind="source",
            model=str(config.source.model),
            fingerprint=model_fingerprint(config.source.model),
            dtype=resolve_dtype(config.source.dtype),
            width=source_width,
            height=source_height,
            options=config.source.sampling,
            cpu_offload=section.cpu_offload,
        ),
        "l2p": Painter(
            kind="l2p",
            model=str(model),
            fingerprint=model_fingerprint(model),
            dtype=resolve_dtype(section.dtype),
            width=width,
            height=height,
            options={
                "num_inference_steps": section.num_inference_steps,
                "guidance_scale": section.guidance_scale,
                "noise_shift": section.noise_shift,
                "max_sequence_length": config.source.max_sequence_length,
            },
            cpu_offload=section.cpu_offload,
        ),
    }


def _paint(
    painter: Painter, jobs: Sequence[Job], folder: Path, config: Config, progress: Progress
) -> Pictures:
    with painting(config) as place:
        painted = generate_images(
            painter,
            jobs,
            folder,
            settings=painter.settings,
            batch_size=config.evaluate.batch_size,
            replace=True,  # a run evaluates what it trained last
            on_image=lambda done, total: progress(done, total, f"{painter.title} paints"),
            **place,
        )
    prompts = [job.prompt for job in jobs]
    settings = painter.settings
    return Pictures(name=painter.title, folder=folder, paths=painted, prompts=prompts, settings=settings)

"""The evaluation stage: paint, judge, compare."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from l2p_eval.geneval import GenEvalPrompt, ImageScore, read_metadata, summarise
from l2p_eval.layout import image_path, score_folder, write_prompts
from l2p_eval.metrics.features import FeatureExtractor, load_extractor
from l2p_eval.metrics.frechet import frechet_between
from l2p_eval.painting import Job, generate_images, plan_jobs
from l2p_run.devices import choose_device, resolve_dtype

from l2p_transfer.cluster import painting
from l2p_transfer.config import Config
from l2p_transfer.detectors import Eyes, load_detector
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
            "sha256": hashlib.sha256(section.metadata.read_bytes()).hexdigest(),
        },
        "images_per_prompt": section.images_per_prompt,
        "seed": section.seed,
    }
    folders = {}
    for name, painter in painters(config, paths).items():
        folder = folders[name] = paths.evaluation / name
        _paint(painter, jobs, folder, config, progress)
        scores = _judge(painter, prompts, folder, eyes, config, progress)
        results[name] = {
            "sampling": dict(painter.options)
            | {"dtype": painter.dtype, "width": painter.width, "height": painter.height},
            "scores": summarise(scores).to_row(),
            "images": [asdict(score) for score in scores],
        }
    files = {
        name: [image_path(folder, job.prompt_index, job.sample) for job in jobs]
        for name, folder in folders.items()
    }
    step = lambda done, total: progress(done, total, "image features")  # noqa: E731
    results["frechet"] = frechet_between(files["source"], files["l2p"], extractor, on_image=step).to_row()
    source, l2p = (results[name]["scores"]["overall"] for name in ("source", "l2p"))
    results["retention"] = l2p / source if source else None
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


def _paint(painter: Painter, jobs: Sequence[Job], folder: Path, config: Config, progress: Progress) -> None:
    with painting(config) as place:
        generate_images(
            painter,
            jobs,
            folder,
            settings=painter.settings,
            batch_size=config.evaluate.batch_size,
            replace=True,  # a run evaluates what it trained last
            on_image=lambda done, total: progress(done, total, f"{painter.title} paints"),
            **place,
        )


def _judge(
    painter: Painter,
    prompts: Sequence[GenEvalPrompt],
    folder: Path,
    eyes: Eyes,
    config: Config,
    progress: Progress,
) -> list[ImageScore]:
    write_prompts(folder, prompts)
    return score_folder(
        folder,
        eyes.detector,
        colors=eyes.colors,
        images_per_prompt=config.evaluate.images_per_prompt,
        on_image=lambda done, total: progress(done, total, f"judging {painter.title}"),
    )

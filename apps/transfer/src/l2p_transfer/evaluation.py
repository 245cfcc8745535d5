"""The evaluation stage: how both models paint and where, and what judges them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_arch.sampling.painter import Painter
from l2p_eval.geneval import read_metadata
from l2p_eval.metrics.features import load_extractor
from l2p_eval.painting import Job, Model, default_workers, generate_images
from l2p_eval.source_and_l2p import Judges, Painted, compare
from l2p_run.cluster import ray_session, workers_that_fit
from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.hashes import of_file
from l2p_run.progress import Progress
from l2p_run.sizes import Size

from l2p_transfer.config import Config
from l2p_transfer.detectors import load_detector
from l2p_transfer.paths import RunPaths
from l2p_transfer.sizes import evaluated_size, source_size


def evaluate_run(config: Config, paths: RunPaths, progress: Progress) -> dict[str, Any]:
    """Score the source and the L2P model on the same prompts and seeds; the content of
    results.json.
    """
    section = config.evaluate
    prompts = read_metadata(section.metadata)
    judges = Judges(
        eyes=load_detector(section),
        extractor=load_extractor(section.features).to(choose_device()),
        patch_size=config.surgery.patch_size,
    )

    def paint(painted: Painted, jobs: Sequence[Job], folder: Path) -> list[Path]:
        with painting(config) as place:
            return generate_images(
                painted.model.load,
                jobs,
                folder,
                settings=painted.model.settings,
                batch_size=section.batch_size,
                replace=True,  # a run evaluates what it trained last
                on_image=lambda done, total: progress(done, total, f"{painted.title} paints"),
                **place,
            )

    found = compare(
        source_model(config),
        l2p_model(config, paths),
        judges,
        prompts,
        paths.evaluation,
        paint,
        images_per_prompt=section.images_per_prompt,
        seed=section.seed,
        floor=section.frechet_floor,
        progress=progress,
    )
    return {
        "detector": judges.eyes.description,
        "metadata": {"file": section.metadata.name, "sha256": of_file(section.metadata)},
        "images_per_prompt": section.images_per_prompt,
        "seed": section.seed,
        **found,
    }


def source_model(config: Config) -> Painted:
    """Return the source, sampled as for the corpus."""
    return _painted(
        "source",
        config.source.model,
        source_size(config),
        config.source.dtype,
        config,
        config.source.sampling,
    )


def l2p_model(config: Config, paths: RunPaths) -> Painted:
    """Return the trained model, sampled as [evaluate] says."""
    model = paths.model.resolve()
    dtype = config.evaluate.dtype
    return _painted("l2p", model, evaluated_size(config), dtype, config, config.l2p_sampling)


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


@contextmanager
def painting(config: Config) -> Iterator[dict[str, Any]]:
    """Yield where the evaluation paints, as arguments of `generate_images`: here, or on the cluster's
    nodes.
    """
    workers, cluster = config.evaluate.workers, config.cluster
    # Its images come back through a folder that all nodes share; `storage` is for those that share none.
    if not cluster.address or workers == 0 or (config.run.storage and workers is None):
        yield {"workers": default_workers() if workers is None else workers}
        return
    wanted = cluster.evaluation_resources
    with ray_session(cluster.address, setting="cluster.address") as ray:
        most = workers_that_fit(ray.cluster_resources(), wanted, setting="cluster.evaluation_resources")
        yield {"executor": "ray", "workers": workers or most, "resources": wanted}

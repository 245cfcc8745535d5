"""The page of a run: `l2p_eval`'s report of its directory, and the sentences that its config decides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2p_eval.report.of_run import Shown, markers_of, report_of
from l2p_eval.report.page import write_report
from l2p_run.sizes import in_words

from l2p_transfer.config import Config
from l2p_transfer.paths import RunPaths
from l2p_transfer.sizes import painted_sizes, trained_sizes


def write_run_report(config: Config, paths: RunPaths, titles: Mapping[str, str]) -> Path:
    """Write report.html and report.md; return the page.

    Args:
        titles: of the stages, by name and in order.
    """
    shown = Shown(
        title=config.report.title or config.run.output.name,
        summary=_summary(config, markers_of(paths.root)),
        source_name=config.source.model.name,
        titles=titles,
        patch_size=config.surgery.patch_size,
        pairs_per_tag=config.report.pairs_per_tag,
        failures=config.report.failures,
        sample_rows=1 if config.train.sample_prompts else 2,  # the user's own prompts have no source images
    )
    return write_report(report_of(paths.root, shown), paths.root)


def _summary(config: Config, markers: Mapping[str, Any]) -> str:
    images = markers["images"]["values"]["images"]
    resized = f", resized to {in_words(trained_sizes(config))}" if config.train.resolution else ""
    return (
        f"{config.source.model.name}, a latent diffusion model, became a pixel-space model with patch size"
        f" {config.surgery.patch_size} and no VAE, trained for {config.train.steps:,} steps on {images:,}"
        f" of its own images of {in_words(painted_sizes(config))}{resized}."
    )

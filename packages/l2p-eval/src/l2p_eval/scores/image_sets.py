"""Scores of sets of images, whatever their prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from l2p_eval.painting import Pictures
from l2p_eval.scores.score import Progress, Score, described_prompts, files_of, sha256_of_images, silent

if TYPE_CHECKING:
    from l2p_eval.metrics.features import FeatureExtractor
    from l2p_eval.metrics.frechet import Patches


def frechet(
    pictures: Pictures,
    extractor: "FeatureExtractor",
    *,
    reference: Sequence[Path],
    reference_name: str = "",
    patches: "Patches | None" = None,
    prompts: str = "",
    progress: Progress = silent,
) -> Score:
    """Frechet distance from the images `reference` (Table 2, Fig. 12); FID on the published Inception.

    Args:
        reference_name: what the reference set is called, for the definition.
        prompts: where the prompts come from, for the definition.
    """
    from l2p_eval.metrics.frechet import frechet_between

    result = frechet_between(
        reference,
        files_of(pictures),
        extractor,
        patches=patches,
        on_image=lambda done, total: progress(done, total, f"features of {pictures.name}"),
    )
    few = (
        f"{result.name} of {pictures.name} rests on fewer images than its features are wide; compare it with"
        " distances of as many images only"
    )
    row = result.to_row()
    details = {"result": dict(row)}
    named = {"reference": f"{reference_name}, {sha256_of_images(reference)}".removeprefix(", ")}
    # The paper's numbers are on Inception's features, and those on others are no FID.
    inception = extractor.name.startswith("inception")
    return Score(
        values={result.name: row.pop("value")},
        definition=row | named | described_prompts(prompts),
        details=details,
        warnings=[few] if result.rank_deficient else [],
        paper=("fid-patch" if patches else "fid") if inception else "",
    )


def inception_score(
    pictures: Pictures,
    classifier: "FeatureExtractor",
    *,
    splits: int = 10,
    prompts: str = "",
    progress: Progress = silent,
) -> Score:
    """Inception Score (Table 2): exp of the mean divergence of p(class | image) from p(class)."""
    from l2p_eval.metrics.inception_score import inception_score_of

    result = inception_score_of(
        files_of(pictures),
        classifier,
        splits=splits,
        on_image=lambda done, total: progress(done, total, f"classifying {pictures.name}"),
    )
    row = result.to_row()
    return Score(
        values={result.name: row.pop("value"), "deviation": row.pop("deviation")},
        definition=row | described_prompts(prompts),
        paper="inception-score",
    )


def patch_grid(
    pictures: Pictures, *, patch_size: int = 16, prompts: str = "", progress: Progress = silent
) -> Score:
    """Jumps at the borders of patches over jumps inside them."""
    from l2p_eval.metrics.patch_grid import patch_grid_of

    result = patch_grid_of(
        files_of(pictures),
        patch_size,
        on_image=lambda done, total: progress(done, total, f"measuring {pictures.name}"),
    )
    row = result.to_row()
    values = {result.name: row.pop("value"), "borders": row.pop("borders"), "inside": row.pop("inside")}
    return Score(values=values, definition=row | described_prompts(prompts))

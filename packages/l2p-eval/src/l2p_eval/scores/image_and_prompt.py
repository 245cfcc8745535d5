"""Scores of images with their prompts."""

from pathlib import Path
from typing import TYPE_CHECKING

from l2p_eval.painting import Pictures
from l2p_eval.scores.score import Progress, Score, pairs_of, sha256_of_texts, silent

if TYPE_CHECKING:
    from l2p_eval.metrics.alignment import TextImageModel
    from l2p_eval.metrics.features import FeatureExtractor
    from l2p_eval.metrics.lpips import Lpips


def alignment(
    pictures: Pictures, model: "TextImageModel", *, prompts: str = "", progress: Progress = silent
) -> Score:
    """Return CLIP, Long-CLIP or FG-CLIP score (Table 2): 100 * cosine of image and prompt."""
    from l2p_eval.metrics.alignment import alignment_of

    paths, texts = pairs_of(pictures)
    result = alignment_of(
        paths,
        texts,
        model,
        on_image=lambda done, total: progress(done, total, f"reading {pictures.name}"),
    )
    row = result.to_row()
    return Score(
        values={result.name: row.pop("value")},
        definition=row | {"prompts": prompts or sha256_of_texts(texts)},
        paper=model.kind if model.kind != "clip" else "",
    )


def diversity(
    pictures: Pictures,
    extractor: "FeatureExtractor | Lpips",
    *,
    prompts: str = "",
    progress: Progress = silent,
) -> Score:
    """Mean distance between the images of one prompt, over its seeds (Fig. 5)."""
    from l2p_eval.metrics.diversity import diversity_of

    painted = pictures.settings is not None
    groups: dict[str, list[Path]] = {}
    for path, prompt in zip(*pairs_of(pictures, named=painted), strict=True):
        groups.setdefault(prompt, []).append(path)
    result = diversity_of(
        groups, extractor, on_prompt=lambda done, total: progress(done, total, f"comparing {pictures.name}")
    )
    row = result.to_row()
    texts = prompts if painted and prompts else sha256_of_texts([*groups])
    return Score(values={result.name: row.pop("value")}, definition=row | {"prompts": texts})

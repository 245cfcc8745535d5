"""What judges images for GenEval: a detector, and what names colours where the detector does not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from l2p_run.places import shorten

from l2p_eval.errors import EvalError
from l2p_eval.geneval import ColorClassifier, Detector

COCO_MODELS = {
    "detector_model": "a Mask2Former (Swin-S, COCO instance)",
    "color_model": "a CLIP (ViT-L/14)",
}
"""GenEval's own two models, as transformers directories that the user has."""


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """What judges the images: finds objects and, where the detector does not, names their colours."""

    description: str  # for the report
    detector: Detector
    colors: ColorClassifier | None = None


def coco_eyes(detector_model: Path, color_model: Path, *, device: str) -> Eyes:
    """Return GenEval's own models; raises `EvalError` where a directory holds none."""
    from l2p_eval.geneval.detectors import ClipColors, Mask2FormerDetector

    return Eyes(
        description="Mask2Former and CLIP through transformers (close to official GenEval, not bit-equal)",
        detector=Mask2FormerDetector(detector_model, device=device),
        colors=ClipColors(color_model, device=device),
    )


def check_coco_models(models: Mapping[str, Path | None], *, where: str = "") -> None:
    """Raise unless both directories are there; nothing is loaded.

    Args:
        models: by the keys of `COCO_MODELS`.
        where: the table that holds the keys, for errors, such as "evaluate.".

    Raises:
        EvalError: every directory that is missing or no model's.
    """
    faults = []
    for key in COCO_MODELS:
        path = models.get(key)
        if path is None or not (path / "config.json").is_file():
            given = f"{shorten(path)} is no transformers model directory" if path else "is missing"
            faults.append(f"{where}{key} {given}")
    if faults:
        wanted = " and of ".join(COCO_MODELS.values())
        raise EvalError(f'{"; ".join(faults)}; detector "coco" needs the directories of {wanted}')

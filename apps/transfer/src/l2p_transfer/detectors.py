"""The object detectors that an evaluation can name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from l2p_eval.geneval import ColorClassifier, Detector
from l2p_run.devices import choose_device
from l2p_run.places import shorten

from l2p_transfer.errors import TransferError

if TYPE_CHECKING:
    from l2p_transfer.config import EvaluateSection


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """What judges the images: finds objects and, where the detector does not, names their colours."""

    description: str  # for the report
    detector: Detector
    colors: ColorClassifier | None = None


def _scenes(section: "EvaluateSection") -> Eyes:
    """Rendered scenes of the miniature; exact, needs no weights."""
    from l2p_mini.detector import ExactDetector

    return Eyes(description="the exact detector of rendered scenes", detector=ExactDetector())


def _coco(section: "EvaluateSection") -> Eyes:
    """GenEval's own models, from the user's directories."""
    from l2p_eval.geneval.detectors import ClipColors, Mask2FormerDetector

    device = choose_device()
    models: list[Path] = [getattr(section, key) for key in COCO_KEYS]
    return Eyes(
        description="Mask2Former and CLIP through transformers (close to official GenEval, not bit-equal)",
        detector=Mask2FormerDetector(models[0], device=device),
        colors=ClipColors(models[1], device=device),
    )


DETECTORS: dict[str, Callable[["EvaluateSection"], Eyes]] = {
    "scenes": _scenes,
    "coco": _coco,
}
COCO_KEYS = {
    "detector_model": "a Mask2Former (Swin-S, COCO instance)",
    "color_model": "a CLIP (ViT-L/14)",
}


def check_detector(section: "EvaluateSection") -> None:
    """Raises if there is no such detector, or if the models it needs are not there."""
    if section.detector not in DETECTORS:
        raise TransferError(f"evaluate.detector is {section.detector!r}; there is {', '.join(DETECTORS)}")
    if section.detector == "coco":
        faults = [fault for key in COCO_KEYS if (fault := _fault(section, key))]
        if faults:
            wanted = " and of ".join(COCO_KEYS.values())
            raise TransferError(f'{"; ".join(faults)}; detector "coco" needs the directories of {wanted}')


def load_detector(section: "EvaluateSection") -> Eyes:
    """What `section.detector` names."""
    check_detector(section)
    return DETECTORS[section.detector](section)


def _fault(section: "EvaluateSection", key: str) -> str | None:
    """What is wrong with the directory of a model, if anything is."""
    path: Path | None = getattr(section, key)
    if path is not None and (path / "config.json").is_file():
        return None
    given = f"{shorten(path)} is no transformers model directory" if path else "is missing"
    return f"evaluate.{key} {given}"

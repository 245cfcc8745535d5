"""The object detectors that an evaluation can name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from l2p_eval.geneval.eyes import COCO_MODELS, Eyes, check_coco_models, coco_eyes
from l2p_run.devices import choose_device

from l2p_transfer.errors import TransferError

if TYPE_CHECKING:
    from l2p_transfer.config import EvaluateSection


def _scenes(section: "EvaluateSection") -> Eyes:
    """Return the miniature's exact detector of rendered scenes, which needs no weights."""
    from l2p_mini.detector import ExactDetector

    return Eyes(description="the exact detector of rendered scenes", detector=ExactDetector())


def _coco(section: "EvaluateSection") -> Eyes:
    """Return GenEval's own models, from the user's directories."""
    assert section.detector_model is not None and section.color_model is not None
    return coco_eyes(section.detector_model, section.color_model, device=choose_device())


DETECTORS: dict[str, Callable[["EvaluateSection"], Eyes]] = {
    "scenes": _scenes,
    "coco": _coco,
}


def check_detector(section: "EvaluateSection") -> None:
    """Raise if there is no such detector, or if the models it needs are not there."""
    if section.detector not in DETECTORS:
        raise TransferError(f"evaluate.detector is {section.detector!r}; there is {', '.join(DETECTORS)}")
    if section.detector == "coco":
        check_coco_models({key: getattr(section, key) for key in COCO_MODELS}, where="evaluate.")


def load_detector(section: "EvaluateSection") -> Eyes:
    """Return what `section.detector` names."""
    check_detector(section)
    return DETECTORS[section.detector](section)

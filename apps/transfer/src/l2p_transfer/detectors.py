"""The object detectors that an evaluation can name."""

from collections.abc import Callable

from l2p_eval.geneval import Detector

from l2p_transfer.errors import TransferError


def _scenes() -> Detector:
    from l2p_mini.detector import ExactDetector

    return ExactDetector()


DETECTORS: dict[str, tuple[str, Callable[[], Detector]]] = {
    # name: (what the report calls it, how to build it)
    "scenes": ("the exact detector of rendered scenes", _scenes),
}


def check_detector(name: str) -> None:
    """Raises if there is no such detector."""
    if name not in DETECTORS:
        raise TransferError(f"evaluate.detector is {name!r}; there is {', '.join(DETECTORS)}")


def load_detector(name: str) -> tuple[str, Detector]:
    """The detector of that name and what to call it."""
    check_detector(name)
    description, build = DETECTORS[name]
    return description, build()

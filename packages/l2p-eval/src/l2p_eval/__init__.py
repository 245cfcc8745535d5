"""Scores for latent and pixel models, and the report that shows them (L2P, sec. 4)."""

from importlib import import_module
from typing import Any

_HOME = {
    "EvalError": "errors",
    "TAGS": "geneval",
    "Detector": "geneval",
    "GenEvalPrompt": "geneval",
    "GenEvalScores": "geneval",
    "ImageScore": "geneval",
    "judge": "geneval",
    "read_metadata": "geneval",
    "summarise": "geneval",
    "DpgScores": "dpg",
    "read_dpg": "dpg",
    "summarise_dpg": "dpg",
    "read_folder": "layout",
    "score_folder": "layout",
    "write_image": "layout",
    "write_prompts": "layout",
    "FrechetResult": "frechet",
    "frechet_between": "frechet",
    "frechet_distance": "frechet",
    "load_extractor": "features",
    "RunReport": "report",
    "write_report": "report",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Loads a name from its module on first use, so that importing this package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

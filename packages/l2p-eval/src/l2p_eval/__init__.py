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
    "Job": "generation",
    "generate_images": "generation",
    "plan_jobs": "generation",
    "ServerJudge": "judges",
    "VqaJudge": "judges",
    "FrechetResult": "frechet",
    "Patches": "frechet",
    "frechet_between": "frechet",
    "frechet_distance": "frechet",
    "load_extractor": "features",
    "inception_score_of": "inception_score",
    "TextImageModel": "alignment",
    "alignment_of": "alignment",
    "Lpips": "lpips",
    "diversity_of": "diversity",
    "count": "efficiency",
    "measure": "efficiency",
    "read_prompt_set": "prompt_sets",
    "Scorecard": "scorecard",
    "write_scorecard": "scorecard",
    "RunReport": "report",
    "write_report": "report",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Loads a name from its module on first use, so that importing this package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

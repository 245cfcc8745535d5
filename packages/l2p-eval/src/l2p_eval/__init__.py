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
    "DpgScores": "dpg.benchmark",
    "read_dpg": "dpg.benchmark",
    "summarise_dpg": "dpg.benchmark",
    "read_folder": "layout",
    "score_folder": "layout",
    "write_image": "layout",
    "write_prompts": "layout",
    "Job": "painting",
    "generate_images": "painting",
    "plan_jobs": "painting",
    "ServerJudge": "dpg.judges",
    "VqaJudge": "dpg.judges",
    "FrechetResult": "metrics.frechet",
    "Patches": "metrics.frechet",
    "frechet_between": "metrics.frechet",
    "frechet_distance": "metrics.frechet",
    "load_extractor": "metrics.features",
    "inception_score_of": "metrics.inception_score",
    "TextImageModel": "metrics.alignment",
    "alignment_of": "metrics.alignment",
    "Lpips": "metrics.lpips",
    "diversity_of": "metrics.diversity",
    "patch_grid_of": "metrics.patch_grid",
    "count": "efficiency",
    "measure": "efficiency",
    "read_prompt_set": "prompt_sets",
    "Scorecard": "report.scorecard",
    "write_scorecard": "report.scorecard",
    "RunReport": "report.page",
    "write_report": "report.page",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a name from its module on first use, so that importing this package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

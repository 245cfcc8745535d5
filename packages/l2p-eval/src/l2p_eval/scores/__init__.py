"""One function per score, called by evaluations, transfers and ablations alike.

Each takes the pictures of one entry and the judges that it needs, loaded, and returns a `Score`: numbers, and
everything that defines them. `METRICS` is the table of them. Networks are imported when a function is called.
"""

from collections.abc import Callable
from dataclasses import dataclass

from l2p_eval.geneval.retention import Retention, retention
from l2p_eval.scores.benchmarks import by_kind, dpg, geneval
from l2p_eval.scores.image_and_prompt import alignment, diversity
from l2p_eval.scores.image_sets import frechet, inception_score, patch_grid
from l2p_eval.scores.score import Progress, Score, files_of, pairs_of, sha256_of_images

__all__ = [
    "METRICS",
    "Metric",
    "Progress",
    "Retention",
    "Score",
    "alignment",
    "by_kind",
    "diversity",
    "dpg",
    "files_of",
    "frechet",
    "geneval",
    "inception_score",
    "pairs_of",
    "patch_grid",
    "retention",
    "sha256_of_images",
]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score function and what pages and help texts call it."""

    score: Callable[..., Score]
    title: str
    about: str
    better: str = "higher is better"


METRICS: dict[str, Metric] = {
    "geneval": Metric(
        score=geneval,
        title="GenEval",
        about="does the image show the objects, counts, colours, positions? (Table 1)",
    ),
    "dpg": Metric(score=dpg, title="DPG-Bench", about="DPG-Bench: questions about dense prompts (Table 1)"),
    "fid": Metric(
        score=frechet,
        title="Frechet distance",
        about="FID, FID-patch, or a Frechet distance on other features (Table 2)",
        better="lower is better",
    ),
    "inception-score": Metric(
        score=inception_score, title="Inception Score", about="Inception Score (Table 2)"
    ),
    "clip": Metric(score=alignment, title="CLIP score", about="CLIP score of images and prompts"),
    "long-clip": Metric(
        score=alignment, title="Long-CLIP score", about="Long-CLIP score (Table 2, the column CLIP)"
    ),
    "fg-clip": Metric(score=alignment, title="FG-CLIP score", about="FG-CLIP score (Table 2)"),
    "diversity": Metric(
        score=diversity,
        title="Diversity over seeds",
        about="LPIPS between the seeds of a prompt (Fig. 5)",
    ),
    "patch-grid": Metric(
        score=patch_grid,
        title="Patch grid",
        about="do patch borders show? jumps across them over jumps inside",
        better="near the source's own is better; a number that stands above it is a visible grid",
    ),
}

"""GenEval's scores: accuracy per task and overall."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from l2p_eval.errors import EvalError
from l2p_eval.geneval.metadata import TAGS


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """The verdict on one image of a folder."""

    prompt_index: int
    sample: int
    tag: str
    prompt: str
    correct: bool
    reason: str
    path: str
    objects: int | None = None  # of any class that the detector found; None: nobody counted


@dataclass(frozen=True, kw_only=True)
class GenEvalScores:
    """Accuracies in [0, 1]. `overall` is the unweighted mean of `tags`, as officially reported."""

    overall: float
    tags: Mapping[str, float]
    images: float  # share of images that are right
    prompts: float  # share of prompts with at least one right image
    image_count: int
    prompt_count: int
    tag_counts: Mapping[str, int]  # images per tag
    objects: int | None = None  # found in all images together; None: nobody counted

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the score means anything."""
        if self.objects != 0:
            return ()
        return (
            f"the detector found no object at all in {self.image_count} images: either they show nothing,"
            " or it does not work here (other weights, or a precision that it does not bear)",
        )

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


def summarise(scores: Sequence[ImageScore]) -> GenEvalScores:
    """Official summary: accuracy per tag, their unweighted mean, % of images and % of prompts."""
    if not scores:
        raise EvalError("no images were scored; a GenEval score needs at least one")
    by_tag: dict[str, list[bool]] = {}
    by_prompt: dict[int, bool] = {}
    for score in scores:
        by_tag.setdefault(score.tag, []).append(score.correct)
        by_prompt[score.prompt_index] = by_prompt.get(score.prompt_index, False) or score.correct
    counts = [score.objects for score in scores]
    tags = {tag: sum(by_tag[tag]) / len(by_tag[tag]) for tag in TAGS if tag in by_tag}
    return GenEvalScores(
        overall=sum(tags.values()) / len(tags),
        tags=tags,
        images=sum(score.correct for score in scores) / len(scores),
        prompts=sum(by_prompt.values()) / len(by_prompt),
        image_count=len(scores),
        prompt_count=len(by_prompt),
        tag_counts={tag: len(by_tag[tag]) for tag in tags},
        objects=None if None in counts else sum(count or 0 for count in counts),
    )

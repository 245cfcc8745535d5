"""One function per score, called by evaluations, transfers and ablations alike.

Each takes the pictures of one entry and the judges that it needs, loaded, and returns a `Score`: numbers, and
everything that defines them. `METRICS` is the table of them. Networks are imported when a function is called.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_run import hashes

from l2p_eval.errors import EvalError
from l2p_eval.geneval.retention import Retention, retention
from l2p_eval.layout import image_path, open_image, read_folder, score_folder, write_prompts
from l2p_eval.painting import Pictures
from l2p_eval.prompt_sets import find_images
from l2p_eval.report.scorecard import Failure

__all__ = [
    "METRICS",
    "Metric",
    "Progress",
    "Retention",
    "Score",
    "alignment",
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

if TYPE_CHECKING:
    from l2p_eval.dpg.benchmark import DpgPrompt, Judge, Mode
    from l2p_eval.geneval import ColorClassifier, Detector, GenEvalPrompt, ImageScore
    from l2p_eval.metrics.alignment import TextImageModel
    from l2p_eval.metrics.features import FeatureExtractor
    from l2p_eval.metrics.frechet import Patches
    from l2p_eval.metrics.lpips import Lpips

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a score function says.

    Attributes:
        values: the headline first; every one is finite, and anything else raises `EvalError`.
        definition: everything that defines the values.
        details: for results.json only.
        warnings: what a reader must know before the values mean anything.
        problem: why they cover only a part of the images, "" where they cover them all.
        paper: key of `l2p_eval.report.paper.rows_for`: the paper's own numbers of this kind.
    """

    values: Mapping[str, float]
    definition: Mapping[str, Any]
    failures: Sequence[Failure] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    problem: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if not math.isfinite(value):
                raise EvalError(f"{name} is {value}, which is no score; look for broken images or weights")

    @property
    def headline(self) -> float:
        """The value that stands for the others."""
        return next(iter(self.values.values()))

    def whole(self) -> "Score":
        """Itself; raises `EvalError` where it covers only a part of the images."""
        if self.problem:
            raise EvalError(self.problem)
        return self


def _silent(done: int, total: int, what: str) -> None:
    """No progress."""


# ------------------------------------------------------------------------------------- GenEval, DPG-Bench


def geneval(
    pictures: Pictures,
    detector: "Detector",
    *,
    colors: "ColorClassifier | None" = None,
    prompts: "Sequence[GenEvalPrompt] | None" = None,
    metadata: str = "the folder's",
    images_per_prompt: int | None = None,
    progress: Progress = _silent,
) -> Score:
    """GenEval (Table 1): share of images that show what their prompt asks for.

    Args:
        pictures: a folder in GenEval's layout.
        prompts: what the folder must ask for; a folder that a model painted is given them. None: whatever
            lies there.
        metadata: where the prompts come from, for the definition.
        images_per_prompt: how many there must be; None: any number.
    """
    from l2p_eval.geneval import prompts_sha256, summarise

    scores: list[ImageScore] = []
    problem = ""
    try:
        if pictures.settings is not None and prompts is not None:
            write_prompts(pictures.folder, prompts)
        asked = _prompts_of(pictures.folder, prompts)
        score_folder(
            pictures.folder,
            detector,
            colors=colors,
            images_per_prompt=images_per_prompt,
            on_image=lambda done, total: progress(done, total, f"judging {pictures.name}"),
            on_score=scores.append,
        )
    except EvalError as error:
        if not scores:
            raise
        problem = str(error)
    summary = summarise(scores)
    return Score(
        values={"overall": summary.overall, **summary.tags, "images": summary.images},
        definition={
            "rules": "GenEval, official thresholds",
            "detector": _described(detector),
            "colours": _described(colors) if colors else "the detector's own",
            "resize": getattr(detector, "preprocessing", "none"),
            "metadata": metadata,
            "prompts sha256": prompts_sha256(asked),
            "n": f"{summary.image_count} images of {summary.prompt_count} prompts",
        },
        failures=[
            Failure(path=pictures.folder / row.path, prompt=row.prompt, reason=row.reason)
            for row in scores
            if not row.correct
        ],
        details={"scores": summary.to_row(), "images": [asdict(score) for score in scores]},
        warnings=summary.warnings,
        problem=problem,
        paper="geneval",
    )


def _prompts_of(folder: Path, wanted: "Sequence[GenEvalPrompt] | None") -> "list[GenEvalPrompt]":
    """The folder's prompts, which have to be the wanted ones where there are any."""
    found = list({sample.prompt_index: sample.prompt for sample in read_folder(folder)}.values())
    for index, (there, want) in enumerate(zip_longest(found, found if wanted is None else wanted)):
        if there != want:
            raise EvalError(
                f"{folder}: prompt {index:05d} is {there.prompt if there else 'missing'!r} and"
                f" {want.prompt if want else 'nothing'!r} in --metadata; give the folder's own"
            )
    return found


def _described(model: Any) -> str:
    """A scoring model's name and weights."""
    name = getattr(model, "name", type(model).__name__)
    weights = getattr(model, "weights_sha256", "")
    return f"{name}, weights sha256 {weights}" if weights else name


def dpg(
    pictures: Pictures,
    judge: "Judge",
    *,
    prompts: "Sequence[DpgPrompt]",
    mode: "Mode" = "official_compat",
    csv: str = "",
    grid: int | None = None,
    images_per_prompt: int = 1,
    answers: Path | None = None,
    progress: Progress = _silent,
) -> Score:
    """DPG-Bench (Table 1): yes or no to questions about dense prompts.

    Args:
        pictures: painted by a model in the order of `prompts`, or a folder of ITEM_ID.png.
        csv: where the prompts come from, for the definition.
        grid: px; each file is a 2 x 2 grid of images of this side.
        images_per_prompt: of pictures that a model painted.
        answers: file that keeps what the judge said, by the content of image, question and judge, so that
            nothing is asked twice and no answer is about another picture.
    """
    from l2p_eval.dpg.answers import Answers
    from l2p_eval.dpg.benchmark import summarise_dpg

    known = Answers(answers, judge)
    found: dict[str, list[dict[int, bool]]] = {}
    problem = ""
    for number, prompt in enumerate(prompts):
        try:
            images = _dpg_images(pictures, number, prompt, grid, images_per_prompt)
            found[prompt.item_id] = known.about(prompt, images)
        except EvalError as error:
            if not found:
                raise
            problem = str(error)
            break
        progress(number + 1, len(prompts), f"questions about {pictures.name}")
    scores = summarise_dpg(prompts, found, mode)
    said = [answer for images in found.values() for image in images for answer in image.values()]
    warnings = []
    if len(said) >= 8 and len(set(said)) == 1:
        word = "yes" if said[0] else "no"
        warnings.append(f"the judge says {word} to all {len(said)} questions: it may not look at the images")
    return Score(
        values={"average": scores.average, **scores.broad},
        definition={
            "mode": mode,
            "judge": getattr(judge, "name", type(judge).__name__),
            "judge's weights sha256": getattr(judge, "weights_sha256", "") or "unknown (a server's)",
            "resize": getattr(judge, "preprocessing", "none"),
            "patches": f"2 x 2 grids of {grid} px" if grid else "none: whole images",
            "csv": csv,
            "n": f"{scores.image_count} images of {scores.prompt_count} prompts",
        },
        details={"detailed": dict(scores.detailed)},
        warnings=warnings,
        problem=problem,
        paper="dpg",
    )


def _dpg_images(
    pictures: Pictures, number: int, prompt: "DpgPrompt", grid: int | None, count: int
) -> list[Any]:
    from l2p_eval.dpg.benchmark import crops

    if pictures.settings is not None:
        return [open_image(image_path(pictures.folder, number, sample)) for sample in range(count)]
    path = pictures.folder / f"{prompt.item_id}.png"
    if not path.is_file():
        raise EvalError(f"{pictures.folder} has no {path.name}; DPG-Bench has one image or grid per item_id")
    image = open_image(path)
    try:
        return crops(image, grid) if grid else [image]
    except EvalError as error:
        raise EvalError(f"{path}: {error}") from None


# ------------------------------------------------------------------------------------------ sets of images


def frechet(
    pictures: Pictures,
    extractor: "FeatureExtractor",
    *,
    reference: Sequence[Path],
    reference_name: str = "",
    patches: "Patches | None" = None,
    prompts: str = "",
    progress: Progress = _silent,
) -> Score:
    """Frechet distance from the images `reference` (Table 2, Fig. 12); FID on the published Inception.

    Args:
        reference_name: what the reference set is called, for the definition.
        prompts: where the prompts come from, for the definition.
    """
    from l2p_eval.metrics.frechet import frechet_between

    result = frechet_between(
        reference,
        files_of(pictures),
        extractor,
        patches=patches,
        on_image=lambda done, total: progress(done, total, f"features of {pictures.name}"),
    )
    few = (
        f"{result.name} of {pictures.name} rests on fewer images than its features are wide; compare it with"
        " distances of as many images only"
    )
    row = result.to_row()
    details = {"result": dict(row)}
    named = {"reference": f"{reference_name}, {sha256_of_images(reference)}".removeprefix(", ")}
    # The paper's numbers are on Inception's features, and those on others are no FID.
    inception = extractor.name.startswith("inception")
    return Score(
        values={result.name: row.pop("value")},
        definition=row | named | _prompts(prompts),
        details=details,
        warnings=[few] if result.rank_deficient else [],
        paper=("fid-patch" if patches else "fid") if inception else "",
    )


def inception_score(
    pictures: Pictures,
    classifier: "FeatureExtractor",
    *,
    splits: int = 10,
    prompts: str = "",
    progress: Progress = _silent,
) -> Score:
    """Inception Score (Table 2): exp of the mean divergence of p(class | image) from p(class)."""
    from l2p_eval.metrics.inception_score import inception_score_of

    result = inception_score_of(
        files_of(pictures),
        classifier,
        splits=splits,
        on_image=lambda done, total: progress(done, total, f"classifying {pictures.name}"),
    )
    row = result.to_row()
    return Score(
        values={result.name: row.pop("value"), "deviation": row.pop("deviation")},
        definition=row | _prompts(prompts),
        paper="inception-score",
    )


def patch_grid(
    pictures: Pictures, *, patch_size: int = 16, prompts: str = "", progress: Progress = _silent
) -> Score:
    """Jumps at the borders of patches over jumps inside them."""
    from l2p_eval.metrics.patch_grid import patch_grid_of

    result = patch_grid_of(
        files_of(pictures),
        patch_size,
        on_image=lambda done, total: progress(done, total, f"measuring {pictures.name}"),
    )
    row = result.to_row()
    values = {result.name: row.pop("value"), "borders": row.pop("borders"), "inside": row.pop("inside")}
    return Score(values=values, definition=row | _prompts(prompts))


# ------------------------------------------------------------------------------------ images and prompts


def alignment(
    pictures: Pictures, model: "TextImageModel", *, prompts: str = "", progress: Progress = _silent
) -> Score:
    """CLIP, Long-CLIP or FG-CLIP score (Table 2): 100 * cosine of image and prompt."""
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
        definition=row | {"prompts": prompts or _sha256_of_texts(texts)},
        paper=model.kind if model.kind != "clip" else "",
    )


def diversity(
    pictures: Pictures,
    extractor: "FeatureExtractor | Lpips",
    *,
    prompts: str = "",
    progress: Progress = _silent,
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
    texts = prompts if painted and prompts else _sha256_of_texts([*groups])
    return Score(values={result.name: row.pop("value")}, definition=row | {"prompts": texts})


# ----------------------------------------------------------------------------------------------- the table


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


# ------------------------------------------------------------------------------------------ what is scored


def files_of(pictures: Pictures) -> list[Path]:
    """All image files of an entry."""
    return list(pictures.paths) or find_images(pictures.folder)


def pairs_of(pictures: Pictures, *, named: bool = True) -> tuple[list[Path], list[str]]:
    """Images and their prompts: as painted or named, or by the metadata of GenEval's layout."""
    if pictures.paths and named:
        return list(pictures.paths), list(pictures.prompts)
    samples = read_folder(pictures.folder)
    return [sample.path for sample in samples], [sample.prompt.prompt for sample in samples]


def sha256_of_images(paths: Sequence[Path]) -> str:
    """One hash over the contents of image files, in their order, in words."""
    digest = hashes.of_bytes(b"".join(bytes.fromhex(hashes.of_file(path)) for path in paths))
    return f"sha256 of its {len(paths)} files {digest}"


def _sha256_of_texts(prompts: Sequence[str]) -> str:
    """Prompts that the folder itself names, in words."""
    digest = hashes.of_bytes(json.dumps(list(prompts)).encode())
    return f"the folder's {len(prompts)}, sha256 {digest}"


def _prompts(described: str) -> dict[str, str]:
    return {"prompts": described} if described else {}

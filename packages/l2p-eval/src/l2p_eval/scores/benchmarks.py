"""GenEval and DPG-Bench: what a judge finds in the pictures."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_eval.errors import EvalError
from l2p_eval.layout import image_path, open_image, read_folder, score_folder, write_prompts
from l2p_eval.painting import Pictures
from l2p_eval.report.scorecard import Failure
from l2p_eval.scores.score import Progress, Score, silent

if TYPE_CHECKING:
    from l2p_eval.dpg.benchmark import DpgPrompt, Judge, Mode
    from l2p_eval.geneval import ColorClassifier, Detector, GenEvalPrompt, ImageScore


def geneval(
    pictures: Pictures,
    detector: "Detector",
    *,
    colors: "ColorClassifier | None" = None,
    prompts: "Sequence[GenEvalPrompt] | None" = None,
    metadata: str = "the folder's",
    images_per_prompt: int | None = None,
    progress: Progress = silent,
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
    kinds: dict[str, list[bool]] = {}
    for row in scores:
        kinds.setdefault(asked[row.prompt_index].kind, []).append(row.correct)
    shares = {kind: sum(right) / len(right) for kind, right in kinds.items() if kind}
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
        details={
            "scores": summary.to_row(),
            **({"kinds": shares} if shares else {}),
            "images": [asdict(score) for score in scores],
        },
        warnings=summary.warnings,
        problem=problem,
        paper="geneval",
    )


def _prompts_of(folder: Path, wanted: "Sequence[GenEvalPrompt] | None") -> "list[GenEvalPrompt]":
    """Return the folder's prompts, which have to be the wanted ones where there are any."""
    found = list({sample.prompt_index: sample.prompt for sample in read_folder(folder)}.values())
    for index, (there, want) in enumerate(zip_longest(found, found if wanted is None else wanted)):
        if there != want:
            raise EvalError(
                f"{folder}: prompt {index:05d} is {there.prompt if there else 'missing'!r} and"
                f" {want.prompt if want else 'nothing'!r} in --metadata; give the folder's own"
            )
    return found


def _described(model: Any) -> str:
    """Return a scoring model's name and weights."""
    name = getattr(model, "name", type(model).__name__)
    weights = getattr(model, "weights_sha256", "")
    return f"{name}, weights sha256 {weights}" if weights else name


def by_kind(score: Score) -> dict[str, float]:
    """Return a score of `geneval` as metrics: overall, and of each kind of prompts that the metadata name."""
    kinds = score.details.get("kinds", {})
    return {"geneval": score.headline, **{f"geneval:{kind}": share for kind, share in kinds.items()}}


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
    progress: Progress = silent,
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

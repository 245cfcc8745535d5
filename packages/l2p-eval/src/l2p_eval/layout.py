"""The official GenEval folder: one per prompt, `00000/metadata.jsonl` and `00000/samples/0000.png`."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from l2p_run import places
from l2p_run.errors import explained, one_line, raised_as
from l2p_run.pictures import open_picture
from PIL import Image

from l2p_eval.errors import EvalError
from l2p_eval.geneval import (
    OFFICIAL,
    ColorClassifier,
    Detector,
    GenEvalPrompt,
    ImageScore,
    Thresholds,
    check_prompts,
    judge,
    parse_row,
)

_LAYOUT = "GenEval's layout is FOLDER/00000/samples/0000.png"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a folder and the prompt that it should show."""

    prompt_index: int
    sample: int
    prompt: GenEvalPrompt
    path: Path


def image_path(folder: Path, prompt_index: int, sample: int) -> Path:
    """Return where image number `sample` of prompt number `prompt_index` lies."""
    return folder / f"{prompt_index:05d}" / "samples" / f"{sample:04d}.png"


def write_prompts(folder: Path, prompts: Sequence[GenEvalPrompt]) -> None:
    """Create the numbered folders with their metadata, ready for images; existing images stay."""
    for index, prompt in enumerate(prompts):
        path = image_path(folder, index, 0).parents[1] / "metadata.jsonl"
        places.write_text(path, json.dumps(prompt.to_row()) + "\n")


def write_image(image: Image.Image, folder: Path, prompt_index: int, sample: int) -> Path:
    """Save one image so that a reader never sees half of it."""
    path = image_path(folder, prompt_index, sample)
    with places.atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
    return path


def read_folder(folder: Path, *, images_per_prompt: int | None = None) -> list[Sample]:
    """List a folder's images in order.

    Args:
        images_per_prompt: how many images each prompt must have; None accepts any number from 1.

    Raises:
        EvalError: no prompts or images, a gap in their numbering, or a wrong number of images.
    """
    numbered = sorted(p for p in list_folder(folder, _LAYOUT) if p.is_dir() and p.name.isdecimal())
    if not numbered:
        raise EvalError(f"{folder} has no numbered prompt folders; {_LAYOUT}")
    samples: list[Sample] = []
    for index, directory in enumerate(numbered):
        if int(directory.name) != index:
            raise EvalError(f"{folder}: folder {index:05d} is missing (the next one is {directory.name})")
        samples += _read_prompt_folder(index, directory, images_per_prompt)
    return samples


def _read_prompt_folder(index: int, directory: Path, images_per_prompt: int | None) -> Iterator[Sample]:
    metadata = directory / "metadata.jsonl"
    with raised_as(EvalError):
        if not places.is_file(metadata):
            raise EvalError(f"{metadata} is missing; it holds the prompt's metadata row")
        content = places.read_bytes(metadata)
    try:
        row = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise EvalError(f"{metadata}: not one JSON object ({one_line(error)})") from None
    prompt = parse_row(row, str(metadata))
    samples = directory / "samples"
    found = list_folder(samples) if samples.exists() else []
    images = sorted(p for p in found if p.suffix == ".png" and p.stem.isdecimal())
    if not images:
        raise EvalError(f"{directory / 'samples'} has no images; it needs 0000.png, 0001.png, ...")
    for number, path in enumerate(images):
        if int(path.stem) != number:
            raise EvalError(f"{path.parent}: image {number:04d}.png is missing (the next one is {path.name})")
    if images_per_prompt is not None and len(images) != images_per_prompt:
        raise EvalError(
            f"{directory / 'samples'} has {len(images)} images, {images_per_prompt} are wanted;"
            " finish or repeat the generation"
        )
    for number, path in enumerate(images):
        yield Sample(prompt_index=index, sample=number, prompt=prompt, path=path)


def score_folder(
    folder: Path,
    detector: Detector,
    *,
    images_per_prompt: int | None = None,
    colors: ColorClassifier | None = None,
    thresholds: Thresholds = OFFICIAL,
    on_image: Callable[[int, int], None] | None = None,
    on_score: Callable[[ImageScore], None] | None = None,
) -> list[ImageScore]:
    """Judge every image of a folder in GenEval's layout.

    Args:
        on_image: called with (images done, images in all) after each one.
        on_score: called with each verdict, so that those before a broken image can be kept.

    Raises:
        EvalError: no such folder; an image that cannot be read; a prompt that the detector cannot judge.
    """
    samples = read_folder(folder, images_per_prompt=images_per_prompt)
    check_prompts([sample.prompt for sample in samples], detector, colors)
    scores = []
    for done, sample in enumerate(samples, start=1):
        image = open_image(sample.path)
        verdict = judge(
            sample.prompt, detector.detect(image), image=image, colors=colors, thresholds=thresholds
        )
        scores.append(
            ImageScore(
                prompt_index=sample.prompt_index,
                sample=sample.sample,
                tag=sample.prompt.tag,
                prompt=sample.prompt.prompt,
                correct=verdict.correct,
                reason=verdict.reason,
                path=sample.path.relative_to(folder).as_posix(),
                objects=verdict.objects,
            )
        )
        if on_score:
            on_score(scores[-1])
        if on_image:
            on_image(done, len(samples))
    return scores


@raised_as(EvalError)
def open_image(path: Path) -> Image.Image:
    """Return a picture as people see it: upright, RGB, on white where it is transparent.

    Raises:
        EvalError: it cannot be read; the cause and what helps against it.
    """
    return open_picture(path)


def list_folder(folder: Path, wanted: str = "give a folder of images") -> list[Path]:
    """Return what lies in a folder, in no order.

    Raises:
        EvalError: there is no such folder, or it may not be listed.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise EvalError(f"no image folder {folder}; {wanted}") from None
    except (OSError, ValueError) as error:  # ValueError: NUL in a name
        raise EvalError(explained(f"cannot list {folder}", error)) from None

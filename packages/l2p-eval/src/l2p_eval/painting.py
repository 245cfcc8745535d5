"""Images for an evaluation, in GenEval's layout: every model paints the same prompts with the same seeds.

What paints is a function that the caller brings; here it is run over the missing images, in this process, in
one process per device, or on Ray. Images that are there are kept, so the same call goes on where it stopped;
a folder that other settings filled is refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from l2p_run import hashes, places
from l2p_run.errors import raised_as
from l2p_run.folder import claim
from l2p_run.settings import LARGEST_SEED, check_settings, seed_setting, setting

from l2p_eval.errors import EvalError
from l2p_eval.layout import image_path
from l2p_eval.painters import Job, Load, default_workers, here, in_processes, on_ray

Executor = Literal["processes", "ray"]
NOTE = "generation.json"
"""In a folder of images: what they were painted with."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What paints: `load`, and all that defines its images beside prompts and seeds, as JSON values."""

    load: Load
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The images of one entry of an evaluation.

    Attributes:
        paths, prompts: image files and what each should show, where that is known; () for a folder that
            somebody filled, which the scores then read themselves.
        settings: those of the model that painted them here; None for a folder that somebody filled.
    """

    name: str
    folder: Path
    paths: Sequence[Path] = ()
    prompts: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Painting:
    """How models paint for an evaluation."""

    images_per_prompt: int = setting(1, ge=1)
    seed: int = seed_setting(42)  # of the first image
    batch_size: int = setting(8, ge=1)
    workers: int | None = setting(None, ge=0)  # None: one per GPU or core; 0: this process
    executor: Executor = "processes"

    def __post_init__(self) -> None:
        """Raise `EvalError` for numbers that are none, or out of range."""
        raised_as(EvalError)(check_settings)(self)


def paint(
    name: str,
    model: Model,
    prompts: Sequence[str],
    folder: Path,
    how: Painting,
    progress: Callable[[int, int, str], None],
) -> Pictures:
    """Fill `folder` (GenEval's layout) with `how.images_per_prompt` images of each prompt."""
    jobs = plan_jobs(prompts, how.images_per_prompt, how.seed)
    paths = generate_images(
        model.load,
        jobs,
        folder,
        settings=model.settings,
        batch_size=how.batch_size,
        workers=default_workers() if how.workers is None else how.workers,
        executor=how.executor,
        on_image=lambda done, total: progress(done, total, f"{name} paints"),
    )
    return Pictures(
        name=name,
        folder=folder,
        paths=paths,
        prompts=[job.prompt for job in jobs],
        settings=dict(model.settings) | {"seeds": f"{how.images_per_prompt} a prompt, from {how.seed}"},
    )


def plan_jobs(prompts: Sequence[str], images_per_prompt: int, seed: int) -> list[Job]:
    """Return every image of an evaluation; consecutive seeds from `seed`."""
    last = seed + len(prompts) * images_per_prompt - 1
    if not 0 <= seed <= last <= LARGEST_SEED and prompts and images_per_prompt > 0:
        raise EvalError(f"the seeds {seed} to {last} leave what generators take; use 0 to 2**63 - 1")
    if not prompts or images_per_prompt < 1:
        raise EvalError(
            f"{len(prompts)} prompts with {images_per_prompt} images each: nothing to paint; give 1 of each"
        )
    return [
        Job(prompt_index=index, sample=sample, prompt=prompt, seed=seed + index * images_per_prompt + sample)
        for index, prompt in enumerate(prompts)
        for sample in range(images_per_prompt)
    ]


def generate_images(
    load: Load,
    jobs: Sequence[Job],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    batch_size: int = 8,
    workers: int = 0,
    executor: Executor = "processes",
    resources: Mapping[str, float] | None = None,
    replace: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Paint what `folder` lacks of `jobs`; return all their files, in order.

    Args:
        settings: JSON values that define the images beside the jobs (model fingerprint, size, sampling).
        resources: custom resources of the Ray cluster that each actor takes: which nodes paint.
        replace: delete the images of other settings or prompts; by default their folder is refused.
        workers: processes or Ray actors, each with its own model; 0 paints in this process.
        on_image: called with (images there, images in all).

    Raises:
        EvalError: the folder holds images of other settings, or a process died.
    """
    claim_folder(folder, jobs, settings, replace=replace)
    paths = [image_path(folder, job.prompt_index, job.sample) for job in jobs]
    missing = [job for job, path in zip(jobs, paths, strict=True) if not path.is_file()]
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    done = len(jobs) - len(missing)
    if on_image:
        on_image(done, len(jobs))
    executors: dict[Executor, Callable[..., Iterator[int]]] = {
        "processes": in_processes,
        "ray": partial(on_ray, resources=resources),
    }
    run = executors[executor] if workers else here
    for count in run(load, batches, folder, min(workers, len(batches))) if batches else ():
        done += count
        if on_image:
            on_image(done, len(jobs))
    return paths


def model_settings(directory: Path, dtype: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `Model.settings` of a model directory that is sampled with `options`; where it lies does not
    count.
    """
    directory = directory.resolve()
    return {"model": directory.name, "weights_sha256": model_sha256(directory), "dtype": dtype, **options}


def model_sha256(directory: Path) -> str:
    """Return sha256 over all bytes of every config and weight file of a model directory, by relative name."""
    state = hashlib.sha256()
    for name in hashes.files_of(directory):
        if name.suffix in hashes.OF_A_MODEL:
            state.update(name.as_posix().encode())
            state.update(bytes.fromhex(hashes.of_file(directory / name)))
    return state.hexdigest()


@raised_as(EvalError)
def claim_folder(
    folder: Path, jobs: Sequence[Job], settings: Mapping[str, Any], *, replace: bool = False
) -> None:
    """Write down what fills `folder`, or checks that it is the same as before.

    Raises:
        EvalError: it is not, and not to be replaced; or the folder cannot be written.
    """
    wanted = {
        "settings": dict(settings),
        "jobs_sha256": hashes.of_bytes(json.dumps([asdict(job) for job in jobs]).encode()),
        "images": len(jobs),
    }
    known = places.read_json_if_whole(folder / NOTE) or {}
    remedy = f"choose another output or delete {folder}"
    same = known.get("settings") == json.loads(json.dumps(wanted["settings"]))
    if same and known.get("jobs_sha256") != wanted["jobs_sha256"] and not replace:
        raise EvalError(f"{folder} holds images of other prompts or seeds; {remedy}")
    claim(folder, wanted, note=NOTE, holds="images", remedy=remedy, replace=replace)

"""What is scored: a folder that is there, or one that a model fills first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from l2p_eval.painting import Executor, default_workers, generate_images, plan_jobs

from l2p_evaluate.errors import EvaluateError
from l2p_evaluate.models import Model

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images of one entry; `paths` and `prompts` where a model painted them, in the order of the jobs."""

    name: str
    folder: Path
    paths: Sequence[Path] = ()
    prompts: Sequence[str] = ()
    model: Model | None = None


@dataclass(frozen=True, kw_only=True)
class Painting:
    """How models paint for an evaluation."""

    images_per_prompt: int = 1
    seed: int = 42  # of the first image
    batch_size: int = 8
    workers: int | None = None  # None: one per GPU or core; 0: this process
    executor: Executor = "processes"


def paint(
    name: str, model: Model, prompts: Sequence[str], folder: Path, how: Painting, progress: Progress
) -> Pictures:
    """Fills `folder` (GenEval's layout) with `how.images_per_prompt` images of each prompt."""
    jobs = plan_jobs(prompts, how.images_per_prompt, how.seed)
    paths = generate_images(
        model,
        jobs,
        folder,
        settings=model.settings,
        batch_size=how.batch_size,
        workers=default_workers() if how.workers is None else how.workers,
        executor=how.executor,
        on_image=lambda done, total: progress(done, total, f"{name} paints"),
    )
    return Pictures(name=name, folder=folder, paths=paths, prompts=[job.prompt for job in jobs], model=model)


def named(text: str) -> tuple[str, Path]:
    """("source", DIR) of "source=DIR", or the directory's own name."""
    name, separator, rest = text.partition("=")
    if separator and name and rest and "/" not in name:
        return name, Path(rest)
    path = Path(text)
    return path.resolve().name, path


def check_names(names: Sequence[str]) -> None:
    """Every entry has a name of its own."""
    for name in names:
        if names.count(name) > 1:
            raise EvaluateError(f"two entries are called {name!r}; name them, as in --model ours=DIR")

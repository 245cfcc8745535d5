"""What the stages of a run would do: a line each, for a command that only prints its plan."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_run.places import shorten
from l2p_run.stages import Stage, is_done


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: what it will do and where its output goes."""

    title: str
    work: str
    output: str
    done: bool


def plan_stages(
    stages: Iterable[tuple[Stage[Any], Sequence[str]]],
    folder: Path,
    work: Mapping[str, tuple[str, Path | str]],
) -> Iterator[StagePlan]:
    """Yield the plan of each stage.

    Args:
        stages: each with the identities that its marker may have.
        folder: of the run, where the markers are.
        work: by name, what a stage does in words, and where its output goes.
    """
    for stage, known in stages:
        words, output = work[stage.name]
        yield StagePlan(
            title=stage.title,
            work=words,
            output=output if isinstance(output, str) else str(shorten(output)),
            done=is_done(folder, stage.name, known),
        )


def lines_of(stages: Sequence[StagePlan]) -> list[str]:
    """Return a table for people."""
    width = max(len(stage.title) for stage in stages)
    work = max(len(stage.work) for stage in stages)
    return [
        f"  {stage.title:{width}}  {stage.work:{work}}  {'done' if stage.done else 'to do':5}  {stage.output}"
        for stage in stages
    ]

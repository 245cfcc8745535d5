"""Entries in, results.json and a report out; written after every entry, so that nothing scored is lost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from l2p_run import places
from l2p_run.errors import UserError

from l2p_eval.errors import EvalError
from l2p_eval.layout import open_image
from l2p_eval.painting import Model, Painting, Pictures, paint
from l2p_eval.prompt_sets import PromptSet, find_images
from l2p_eval.report.paper import rows_for
from l2p_eval.report.scorecard import Entry, Scorecard, write_scorecard
from l2p_eval.scores import METRICS, Progress, Score

FAILURES_SHOWN, PICTURES_SHOWN = 24, 12


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One thing to score: a folder of images, or a model that paints one."""

    name: str
    folder: Path  # of the images, or where the model's go
    model: Model | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation compares, and by what.

    Attributes:
        metric: key of `METRICS`.
        score: the metric's function with its judges, taking pictures and progress.
        prompts: what models paint; () where the command brings none.
        named: names and texts of the images of folders, where a file says them.
    """

    metric: str
    entries: Sequence[Scored]
    score: Callable[[Pictures, Progress], Score]
    prompts: Sequence[str] = ()
    named: PromptSet | None = None
    painting: Painting = field(default_factory=Painting)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What results.json holds, and what went wrong on the way ("" if nothing)."""

    results: dict[str, Any]
    problem: str


def evaluate(
    evaluation: Evaluation,
    output: Path,
    provenance: Mapping[str, Any],
    progress: Progress,
    warn: Callable[[str], None] = lambda text: None,
    expected: tuple[type[Exception], ...] = (UserError,),
) -> Outcome:
    """Score every entry in turn. One that fails ends the evaluation; the earlier ones stay.

    Args:
        output: gets results.json, report.html and report.md.
        warn: told what a reader must know before a number means anything.
        expected: exceptions that end an entry without being a bug; models may have their own.

    Raises:
        UserError: before anything was scored.
    """
    entries = evaluation.entries
    if not evaluation.prompts and any(entry.model for entry in entries):
        raise EvalError("a model needs prompts to paint; give --prompts FILE")
    places.make_folder(output, "choose another --output")
    done: list[tuple[Pictures, Score]] = []
    results: dict[str, Any] = {}
    problem = ""
    for number, entry in enumerate(entries, start=1):
        try:
            pictures = _pictures(entry, evaluation, progress)
            score = evaluation.score(pictures, progress)
        except expected as error:
            if not done:
                raise
            problem = f"{entry.name}: {error}"
        else:
            done.append((pictures, score))
            for text in score.warnings:
                warn(f"{entry.name}: {text}")
            problem = f"{entry.name}: {score.problem}" if score.problem else ""
        missing = f"{len(done)} of {len(entries)} entries are scored" if number < len(entries) else ""
        results = _write(evaluation.metric, output, done, provenance, problem or missing)
        if problem:
            break
    return Outcome(results=results, problem=problem)


def _pictures(entry: Scored, evaluation: Evaluation, progress: Progress) -> Pictures:
    if entry.model:
        how = evaluation.painting
        return paint(entry.name, entry.model, evaluation.prompts, entry.folder, how, progress)
    if named := evaluation.named:
        paths = find_images(entry.folder, named.names)
        return Pictures(name=entry.name, folder=entry.folder, paths=paths, prompts=named.texts)
    return Pictures(name=entry.name, folder=entry.folder)


def _write(
    metric: str,
    output: Path,
    done: Sequence[tuple[Pictures, Score]],
    provenance: Mapping[str, Any],
    problem: str,
) -> dict[str, Any]:
    """Write results.json, report.html and report.md, each whole."""
    title, better = METRICS[metric].title, METRICS[metric].better
    paper = rows_for(done[0][1].paper) if done else ()
    entries = [_entry(pictures, score) for pictures, score in done]
    rows = [
        {
            "name": entry.name,
            "folder": str(pictures.folder),
            "complete": not entry.problem,
            "problem": entry.problem,
            "warnings": list(score.warnings),
            "values": dict(entry.values),
            "definition": dict(entry.definition),
            **score.details,
        }
        for entry, (pictures, score) in zip(entries, done, strict=True)
    ]
    results = {
        "metric": metric,
        "complete": not problem,
        "problem": problem,
        "entries": rows,
        "paper": {"note": "the paper's own numbers, not measured here", "rows": dict(paper)},
        "provenance": dict(provenance),
    }
    card = Scorecard(
        title=f"{title}: {', '.join(entry.name for entry in entries)}",
        metric=title,
        better=better,
        entries=entries,
        paper=paper,
        provenance=provenance,
        problem="" if any(entry.problem for entry in entries) else problem,
    )
    places.write_json(output / "results.json", results, default=str, ensure_ascii=True, allow_nan=False)
    write_scorecard(card, output)
    return results


def _entry(pictures: Pictures, score: Score) -> Entry:
    """Return what the page shows of one entry."""
    definition = {"metric version": f"l2p-eval {version('l2p-eval')}", **score.definition}
    definition |= {f"sampling: {key}": value for key, value in (pictures.settings or {}).items()}
    return Entry(
        name=pictures.name,
        values=score.values,
        definition=definition,
        pictures=_first(pictures),
        failures=score.failures[:FAILURES_SHOWN],
        problem=score.problem,
        warnings=score.warnings,
    )


def _first(pictures: Pictures) -> list[tuple[Path, str]]:
    """Return some pictures for the page."""
    if pictures.settings is not None:
        step = max(1, len(pictures.paths) // PICTURES_SHOWN)
        return list(zip(pictures.paths, pictures.prompts, strict=True))[::step][:PICTURES_SHOWN]
    try:
        found = find_images(pictures.folder)
    except EvalError:
        return []
    return [(path, path.stem) for path in found[:: max(1, len(found) // PICTURES_SHOWN)] if _readable(path)][
        :PICTURES_SHOWN
    ]


def _readable(path: Path) -> bool:
    try:
        open_image(path)
    except EvalError:
        return False
    return True

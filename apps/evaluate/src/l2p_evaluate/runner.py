"""Entries in, results.json and a report out; written after every entry, so that nothing scored is lost."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError
from l2p_eval.errors import EvalError
from l2p_eval.layout import open_image
from l2p_eval.prompt_sets import find_images
from l2p_eval.report.paper import rows_for
from l2p_eval.report.scorecard import Entry, Scorecard, write_scorecard

from l2p_evaluate.cli import METRICS
from l2p_evaluate.errors import EvaluateError
from l2p_evaluate.models import open_model
from l2p_evaluate.pictures import Painting, Pictures, Progress, check_names, named, paint
from l2p_evaluate.provenance import collect_provenance
from l2p_evaluate.scorers import Score, Scorer

FAILURES_SHOWN, PICTURES_SHOWN = 24, 12


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What results.json holds, and what went wrong on the way ("" if nothing)."""

    results: dict[str, Any]
    problem: str


def scorer_class(metric: str) -> type[Scorer]:
    """The scorer of a metric; loads its module."""
    module, name, _ = METRICS[metric]
    found: type[Scorer] = getattr(import_module(f"l2p_evaluate.{module}"), name)
    return found


def evaluate(options: argparse.Namespace, command: Sequence[str], progress: Progress) -> Outcome:
    """Scores every --images and --model in turn. An entry that fails ends the command; the earlier ones stay.

    Raises:
        EvalError, EvaluateError: before anything was scored.
    """
    entries = _entries(options)
    how_to_load = {"dtype": options.dtype, "cpu_offload": options.cpu_offload}
    models = {
        name: open_model(path, _sampling(options), **how_to_load)
        for name, path, is_model in entries
        if is_model
    }
    scorer = scorer_class(options.metric)(options)
    if models and not scorer.prompts:
        raise EvaluateError("a model needs prompts to paint; give --prompts FILE")
    make_folder(options.output)
    how = Painting(
        images_per_prompt=options.images_per_prompt or 1,
        seed=options.seed,
        batch_size=options.batch_size,
        workers=options.workers,
        executor=options.executor,
    )
    provenance, problem = collect_provenance(command), ""
    done: list[tuple[Pictures, Score]] = []
    results: dict[str, Any] = {}
    for number, (name, path, _) in enumerate(entries, start=1):
        try:
            pictures = Pictures(name=name, folder=path)
            if name in models:
                folder = options.output / "images" / name
                pictures = paint(name, models[name], scorer.prompts, folder, how, progress)
            score = scorer.score(pictures, progress)
        except (ArchError, EvalError, EvaluateError) as error:
            if not done:
                raise
            problem = f"{name}: {error}"
        else:
            done.append((pictures, score))
            problem = f"{name}: {score.problem}" if score.problem else ""
        missing = f"{len(done)} of {len(entries)} entries are scored" if number < len(entries) else ""
        results = _write(options, scorer, done, provenance, problem or missing)
        if problem:
            break
    return Outcome(results=results, problem=problem)


def _entries(options: argparse.Namespace) -> list[tuple[str, Path, bool]]:
    """(name, path, whether it is a model), checked."""
    entries = [(*named(text), False) for text in options.images]
    entries += [(*named(text), True) for text in options.model]
    if not entries:
        raise EvaluateError("nothing to score; give --images DIR or --model DIR")
    check_names([name for name, _, _ in entries])
    for _, path, is_model in entries:
        if not is_model and not path.is_dir():
            raise EvalError(f"no image folder {path}; give a folder of images to --images")
    return entries


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "height": options.height,
        "width": options.width,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "noise_shift": options.shift,
        "max_sequence_length": options.max_sequence_length,
    }


def make_folder(folder: Path) -> None:
    """Create a folder for results; EvaluateError where that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluateError(f"cannot write to {folder}: {error.strerror}; choose another --output") from None


def _write(
    options: argparse.Namespace,
    scorer: Scorer,
    done: Sequence[tuple[Pictures, Score]],
    provenance: dict[str, Any],
    problem: str,
) -> dict[str, Any]:
    """results.json, report.html and report.md, each whole."""
    paper = rows_for(scorer.paper)
    entries = [_entry(options, pictures, score) for pictures, score in done]
    rows = [
        {
            "name": entry.name,
            "folder": str(pictures.folder),
            "complete": not entry.problem,
            "problem": entry.problem,
            "values": dict(entry.values),
            "definition": dict(entry.definition),
            **score.details,
        }
        for entry, (pictures, score) in zip(entries, done, strict=True)
    ]
    results = {
        "metric": options.metric,
        "complete": not problem,
        "problem": problem,
        "entries": rows,
        "paper": {"note": "the paper's own numbers, not measured here", "rows": dict(paper)},
        "provenance": provenance,
    }
    card = Scorecard(
        title=f"{scorer.title}: {', '.join(entry.name for entry in entries)}",
        metric=scorer.title,
        better=scorer.better,
        entries=entries,
        paper=paper,
        provenance=provenance,
        problem="" if any(entry.problem for entry in entries) else problem,
    )
    partial = options.output / ".results.json.partial"
    partial.write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(options.output / "results.json")
    write_scorecard(card, options.output)
    return results


def _entry(options: argparse.Namespace, pictures: Pictures, score: Score) -> Entry:
    """What the page shows of one entry."""
    definition = {"metric version": f"l2p-eval {version('l2p-eval')}", **score.definition}
    if pictures.model:
        definition |= {f"sampling: {key}": value for key, value in pictures.model.settings.items()}
        definition["sampling: seeds"] = f"{options.images_per_prompt or 1} a prompt, from {options.seed}"
    return Entry(
        name=pictures.name,
        values=score.values,
        definition=definition,
        pictures=_first(pictures),
        failures=score.failures[:FAILURES_SHOWN],
        problem=score.problem,
    )


def _first(pictures: Pictures) -> list[tuple[Path, str]]:
    """Some pictures for the page."""
    if pictures.paths:
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

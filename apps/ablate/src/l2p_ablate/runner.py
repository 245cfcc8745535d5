"""Runs an ablation: corpora, reference, then arms x seeds, all of which resume.

The evidence is written as it grows.

Seeds are the outer loop, so that a budget that runs out leaves whole comparisons.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from l2p_evaluate.provenance import collect_provenance

from l2p_ablate.arms import Held, check_arms, read_result, run_arm, write_json
from l2p_ablate.config import ArmTable, Config
from l2p_ablate.data import held_out_prompts, make_corpus, make_reference
from l2p_ablate.results import summarise, table
from l2p_ablate.store import Store, held

Say = Callable[[str], None]
Results = Mapping[tuple[str, int], Any]


def execute(
    config: Config,
    root: Path,
    store: Path,
    *,
    command: Sequence[str],
    workers: int | None = None,
    say: Say = lambda text: None,
    progress: Say = lambda text: None,
) -> dict[str, Any]:
    """Everything that is not done yet; returns the content of results.json.

    Args:
        root: gets results.json, results.md, chart.png and pictures.png.
        store: gets the corpora, pictures and runs, which other ablations share.
        workers: processes; None: one per device, 0: paint in this one.
        say: told once per finished part. progress: told often.
    """
    check_arms(config)
    places = Store(root=store, config=config)
    before, started = _spent(root), time.monotonic()
    provenance = collect_provenance(command)

    def spent() -> float:
        return before + time.monotonic() - started

    with held(root, wait=True):
        root.mkdir(exist_ok=True)
    targets = _make_data(
        config, places, workers, lambda text: say(f"{text} ({spent() / 60:.1f} min)"), progress
    )
    pending = [(arm, seed) for seed in config.ablation.seeds for arm in config.arm]
    for arm, seed in pending:
        if result := read_result(places.run(arm, seed)):
            say(f"{arm.name}, seed {seed}: {_line(result)} (done before)")
    longest, busy = 0.0, 0
    while pending := [pair for pair in pending if read_result(places.run(*pair)) is None]:
        if spent() + longest > 60 * config.ablation.budget_minutes:
            minutes = config.ablation.budget_minutes
            say(f"the budget of {minutes:g} min is spent: {len(pending)} runs are missing")
            break
        arm, seed = pending[busy % len(pending)]
        began = time.monotonic()
        tell = partial(_prefixed, progress, f"{arm.name}, seed {seed} ({len(pending)} to do)")
        folder = places.run(arm, seed)
        with held(folder, wait=busy >= len(pending)) as mine:  # another command may be at it
            if not mine:
                busy += 1
                continue
            busy = 0
            result = run_arm(
                config, arm, seed, places.corpus(config.data_of(arm)), folder, targets, workers, tell
            )
        longest = max(longest, time.monotonic() - began)
        say(f"{arm.name}, seed {seed}: {_line(result)}")
        _write(config, root, places, targets, provenance, spent())
    return _write(config, root, places, targets, provenance, spent())


def _line(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in result["metrics"].items())


def _make_data(config: Config, places: Store, workers: int | None, say: Say, progress: Say) -> Held:
    """The corpora that the arms name, and the held-out pictures."""
    for name in {config.data_of(arm): None for arm in config.arm}:
        folder = places.corpus(name)
        with held(folder, wait=True):
            make_corpus(config, name, folder, workers, progress)
        say(f"data {name}: done")
    prompts = held_out_prompts(config)
    with held(places.reference, wait=True):
        reference = make_reference(config, prompts, places.reference, workers, progress)
    return Held(prompts=prompts, reference=reference)


def _prefixed(progress: Say, shown: str, text: str) -> None:
    progress(f"{shown}: {text}")


def _write(
    config: Config, root: Path, places: Store, targets: Held, provenance: Any, spent: float
) -> dict[str, Any]:
    """results.json, results.md, chart.png and pictures.png of all runs that are there, whole at any time."""
    from l2p_ablate.charts import save_chart, save_pictures

    found = {
        (arm.name, seed): read_result(places.run(arm, seed))
        for arm in config.arm
        for seed in config.ablation.seeds
    }
    results: Results = {key: result for key, result in found.items() if result is not None}
    summary = summarise(config, results) | {
        "seconds": round(spent, 1),
        "provenance": provenance,
        "config": config.model_dump(
            mode="json", exclude={"source": {"model"}, "evaluate": {"metadata"}, "data": True}
        ),
    }
    with held(root, wait=True):
        if results:
            save_chart(summary, root / "chart.png")
        painted = {arm.name: _painted(places, arm, config.ablation.seeds[0]) for arm in config.arm}
        if shown := {name: folder for name, folder in painted.items() if folder}:
            save_pictures(config, shown, targets.reference, targets.prompts, root / "pictures.png")
        _replace(root / "results.md", f"# {summary['title']} ({summary['paper']})\n\n{table(summary)}\n")
        write_json(root / "results.json", summary)
    return summary


def _painted(places: Store, arm: ArmTable, seed: int) -> Path | None:
    """The images of a finished run."""
    folder = places.run(arm, seed)
    return folder / "images" if read_result(folder) else None


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _spent(root: Path) -> float:
    """Seconds that earlier calls took."""
    try:
        return float(json.loads((root / "results.json").read_text(encoding="utf-8"))["seconds"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0.0

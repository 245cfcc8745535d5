"""Runs an ablation: corpora, reference, then arms x seeds, all of which resume.

The evidence is written as it grows.

Seeds are the outer loop, so that a budget that runs out leaves whole comparisons.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from l2p_eval.painting import Pictures
from l2p_eval.report.arm_charts import write_arms
from l2p_eval.report.arms import Results, summarise
from l2p_eval.scores import by_kind, geneval
from l2p_mini.detector import ExactDetector
from l2p_run import places
from l2p_run.folder.shared_work import work_through
from l2p_run.provenance import collect
from l2p_run.settings import to_table

from l2p_ablate.arms import Held, check_arms, read_result, run_arm
from l2p_ablate.config import ArmTable, Config
from l2p_ablate.data import held_out_prompts, make_corpus, make_reference
from l2p_ablate.store import Store, held

Say = Callable[[str], None]
PACKAGES = (
    *("l2p-arch", "l2p-data", "l2p-train", "l2p-eval", "l2p-mini", "torch", "torchvision", "diffusers"),
    *("transformers", "efficientnet-lite-pytorch", "pillow"),
)


def check(config: Config) -> None:
    """Check what can be known before anything is made: every model can be built, every prompt judged, every
    grammar read. Raises the packages' own errors."""
    from l2p_data.prompts.grammar import GrammarGenerator

    check_arms(config)
    held_out_prompts(config)
    for data in config.data.values():
        GrammarGenerator(data.grammar, seed=0)


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
    """Do everything that is not done yet; return the content of results.json.

    Args:
        root: gets results.json, results.md, chart.png and pictures.png.
        store: gets the corpora, pictures and runs, which other ablations share.
        workers: processes; None: one per device, 0: paint in this one.
        say: told once per finished part. progress: told often.
    """
    check(config)
    stored = Store(root=store, config=config)
    before, started = _spent(root), time.monotonic()
    provenance = collect(command, PACKAGES)

    def spent() -> float:
        return before + time.monotonic() - started

    with held(root, wait=True):
        places.make_folder(root, "choose another --output")
    targets = _make_data(
        config, stored, workers, lambda text: say(f"{text} ({spent() / 60:.1f} min)"), progress
    )
    jobs = [(arm, seed) for seed in config.ablation.seeds for arm in config.arm]
    for arm, seed in jobs:
        if result := read_result(stored.run(arm, seed)):
            say(f"{arm.name}, seed {seed}: {_line(result)} (done before)")

    def work(job: tuple[ArmTable, int], left: int) -> None:
        arm, seed = job
        tell = partial(_prefixed, progress, f"{arm.name}, seed {seed} ({left} to do)")
        corpus = stored.corpus(config.data_of(arm))
        run_arm(config, arm, seed, corpus, stored.run(arm, seed), targets, workers, tell)

    def after(job: tuple[ArmTable, int]) -> None:
        arm, seed = job
        if result := read_result(stored.run(arm, seed)):
            say(f"{arm.name}, seed {seed}: {_line(result)}")
        _write(config, root, stored, targets, provenance, spent())

    minutes = config.ablation.budget_minutes
    missing = work_through(
        jobs,
        is_done=lambda job: read_result(stored.run(*job)) is not None,
        hold=lambda job, wait: held(stored.run(*job), wait=wait),  # another command may be at it
        work=work,
        seconds_left=lambda: 60 * minutes - spent(),
        after=after,
    )
    if missing:
        say(f"the budget of {minutes:g} min is spent: {missing} runs are missing")
    return _write(config, root, stored, targets, provenance, spent())


def _line(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in result["metrics"].items())


def _make_data(config: Config, stored: Store, workers: int | None, say: Say, progress: Say) -> Held:
    """Return the corpora that the arms name, and the held-out pictures."""
    for name in {config.data_of(arm): None for arm in config.arm}:
        folder = stored.corpus(name)
        with held(folder, wait=True):
            make_corpus(config, name, folder, workers, progress)
        say(f"data {name}: done")
    prompts = held_out_prompts(config)
    with held(stored.reference, wait=True):
        reference = make_reference(config, prompts, stored.reference, workers, progress)
        score = geneval(
            Pictures(name="the reference", folder=stored.reference, settings={}),
            ExactDetector(),
            prompts=prompts,
        )
    return Held(prompts=prompts, reference=reference, score=by_kind(score.whole()))


def _prefixed(progress: Say, shown: str, text: str) -> None:
    progress(f"{shown}: {text}")


def _write(
    config: Config, root: Path, stored: Store, targets: Held, provenance: Any, spent: float
) -> dict[str, Any]:
    """Write results.json, results.md, chart.png and pictures.png of all runs that are there, whole at any
    time.
    """
    found = {
        (arm.name, seed): read_result(stored.run(arm, seed))
        for arm in config.arm
        for seed in config.ablation.seeds
    }
    results: Results = {key: result for key, result in found.items() if result is not None}
    ablation, tables = config.ablation, to_table(config)
    for name, key in (("source", "model"), ("evaluate", "metadata"), ("surgery", "base")):  # local paths
        tables[name].pop(key, None)
    del tables["data"]
    summary = {
        "title": ablation.title,
        "paper": ablation.paper,
        "claim": ablation.claim,
        **summarise(config.labels, ablation.seeds, config.claim, ablation.metric, results),
        "reference": {"name": config.evaluate.reference, "metrics": dict(targets.score)},
        "seconds": round(spent, 1),
        "provenance": provenance,
        "config": tables,
    }
    painted = {config.labels[arm.name]: _painted(stored, arm, ablation.seeds[0]) for arm in config.arm}
    with held(root, wait=True):
        write_arms(
            summary,
            root,
            reference=(config.evaluate.reference, targets.reference),
            painted={label: folder for label, folder in painted.items() if folder},
            prompts=targets.prompts,
        )
    return summary


def _painted(stored: Store, arm: ArmTable, seed: int) -> Path | None:
    """Return the images of a finished run."""
    folder = stored.run(arm, seed)
    return folder / "images" if read_result(folder) else None


def _spent(root: Path) -> float:
    """Return seconds that earlier calls took."""
    seconds = (places.read_json_if_whole(root / "results.json") or {}).get("seconds", 0.0)
    return float(seconds) if isinstance(seconds, int | float) else 0.0

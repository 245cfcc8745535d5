"""Runs an ablation: corpora, reference, then arms x seeds, all of which resume.

The evidence is written as it grows.

Seeds are the outer loop, so that a budget that runs out leaves whole comparisons.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from l2p_evaluate.provenance import collect_provenance

from l2p_ablate.arms import Held, check_arms, run_arm, write_json
from l2p_ablate.config import Config
from l2p_ablate.data import fingerprint, held_out_prompts, make_corpus, make_reference
from l2p_ablate.errors import AblateError
from l2p_ablate.results import summarise, table

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where everything of an ablation lies."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    def corpus(self, name: str) -> Path:
        return self.root / "data" / name

    @property
    def reference(self) -> Path:
        return self.root / "reference"

    def run(self, arm: str, seed: int) -> Path:
        return self.root / "runs" / arm / f"seed-{seed}"


def execute(
    config: Config,
    root: Path,
    *,
    command: Sequence[str],
    workers: int | None = None,
    say: Say = lambda text: None,
    progress: Say = lambda text: None,
) -> dict[str, Any]:
    """Everything that is not done yet; returns the content of results.json.

    Args:
        workers: processes; None: one per device, 0: paint in this one.
        say: told once per finished part. progress: told often.
    """
    folders = Folders(root=root)
    check_arms(config)
    with _locked(root):
        _claim(config, folders)
        before = _spent(folders)
        started = time.monotonic()
        provenance = collect_provenance(command)

        def spent() -> float:
            return before + time.monotonic() - started

        held = _make_data(
            config, folders, workers, lambda text: say(f"{text} ({spent() / 60:.1f} min)"), progress
        )
        results: dict[tuple[str, int], Any] = {}
        longest = 0.0
        pending = [(arm, seed) for seed in config.ablation.seeds for arm in config.arm]
        for number, (arm, seed) in enumerate(pending, start=1):
            folder = folders.run(arm.name, seed)
            new = not (folder / "result.json").is_file()
            if new and spent() + longest > 60 * config.ablation.budget_minutes:
                minutes = config.ablation.budget_minutes
                say(f"the budget of {minutes:g} min is spent: {number - 1} runs are done")
                break
            began = time.monotonic()
            shown = f"[{number}/{len(pending)}] {arm.name}, seed {seed}"
            corpus = folders.corpus(config.data_of(arm))
            tell = partial(_prefixed, progress, shown)
            result = run_arm(config, arm, seed, corpus, folder, held, workers, tell)
            results[arm.name, seed] = result
            longest = max(longest, time.monotonic() - began)
            metrics = ", ".join(f"{name} {value:.3f}" for name, value in result["metrics"].items())
            say(f"{shown}: {metrics}" + ("" if new else " (done before)"))
            if new:
                _write(config, folders, results, held, provenance, spent())
        return _write(config, folders, results, held, provenance, spent())


def _make_data(config: Config, folders: Folders, workers: int | None, say: Say, progress: Say) -> Held:
    """The corpora that the arms name, and the held-out pictures."""
    for name in {config.data_of(arm): None for arm in config.arm}:
        make_corpus(config, name, folders.corpus(name), workers, progress)
        say(f"data {name}: done")
    prompts = held_out_prompts(config)
    reference = make_reference(config, prompts, folders.reference, workers, progress)
    return Held(prompts=prompts, reference=reference)


def _prefixed(progress: Say, shown: str, text: str) -> None:
    progress(f"{shown}: {text}")


def _write(
    config: Config,
    folders: Folders,
    results: dict[tuple[str, int], Any],
    held: Held,
    provenance: Any,
    spent: float,
) -> dict[str, Any]:
    """results.json, results.md, chart.png and pictures.png, whole at any time."""
    from l2p_ablate.charts import save_chart, save_pictures

    summary = summarise(config, results) | {
        "seconds": round(spent, 1),
        "provenance": provenance,
        "config": config.model_dump(mode="json", exclude={"source": {"model"}, "data": True}),
        "fingerprint": fingerprint(config),
    }
    if results:
        save_chart(summary, folders.root / "chart.png")
        painted = {
            arm.name: folders.run(arm.name, config.ablation.seeds[0]) / "images"
            for arm in config.arm
            if (arm.name, config.ablation.seeds[0]) in results
        }
        if painted:
            save_pictures(config, painted, held.reference, held.prompts, folders.root / "pictures.png")
    _replace(folders.root / "results.md", f"# {summary['title']} ({summary['paper']})\n\n{table(summary)}\n")
    write_json(folders.results, summary)
    return summary


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _spent(folders: Folders) -> float:
    """Seconds that earlier sessions took."""
    try:
        return float(json.loads(folders.results.read_text(encoding="utf-8"))["seconds"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0.0


def _claim(config: Config, folders: Folders) -> None:
    """Refuses a directory that another config filled; more seeds, budget or words do not make another."""
    note = folders.root / "ablation.json"
    wanted = {"fingerprint": fingerprint(config), "title": config.ablation.title}
    if note.is_file():
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["fingerprint"] != wanted["fingerprint"]:
            raise AblateError(
                f"{folders.root} holds the runs of another config ({known['title']!r});"
                " choose another --output, or delete it"
            )
        return
    if any(path.name != ".lock" for path in folders.root.iterdir()):
        raise AblateError(f"{folders.root} is not empty and holds no ablation; choose another --output")
    write_json(note, wanted)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / ".lock").open("a")
    except OSError as error:
        raise AblateError(f"cannot write to {root}: {error.strerror}; choose another --output") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AblateError(f"another l2p-ablate is working in {root}; wait for it") from None
        yield

"""Where everything lies in a run directory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_transfer.errors import TransferError


@dataclass(frozen=True)
class RunPaths:
    """The files of one run, all below `root`."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.toml"

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One line per finished stage, with its numbers."""
        return self.root / "metrics.jsonl"

    @property
    def timings(self) -> Path:
        """Time and peak memory per stage."""
        return self.root / "timings.json"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts" / "generated.parquet"

    @property
    def filtered(self) -> Path:
        """All prompts with the filter's verdict; the drops are kept."""
        return self.root / "prompts" / "filtered.parquet"

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def initial(self) -> Path:
        """What surgery leaves: the pixel-space initialisation."""
        return self.root / "initial"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def model(self) -> Path:
        """A link to the trained model."""
        return self.root / "model"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def results(self) -> Path:
        return self.evaluation / "results.json"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    def marker(self, stage: str) -> Path:
        """The ledger of a stage: its state, time, memory and numbers."""
        return self.root / "stages" / f"{stage}.json"


def shorten(path: Path) -> Path:
    """For people: relative to the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader never sees half of it."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise TransferError(f"cannot write {path}: {error.strerror}; choose another run.output") from None


def read_json(path: Path) -> Any:
    """A JSON file of the run, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise TransferError(f"{path} is damaged ({error}); delete it and run again") from None

"""Where everything lies in a run directory."""

from dataclasses import dataclass
from pathlib import Path

from l2p_run.stages import marker_path


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
        """Return the ledger of a stage: its state, time, memory and numbers."""
        return marker_path(self.root, stage)

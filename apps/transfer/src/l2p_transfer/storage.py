"""A run at an address (`run.storage`): another machine, or this one with an empty disk, goes on with it.

The corpus and an LLM's answers are written there and read from there. Of everything else a stage leaves a
copy when it is done; the training does so at every checkpoint.
"""

from collections.abc import Mapping

from l2p_run.stages.copies import StageCopies
from l2p_run.storage.store import Store

from l2p_transfer.config import Config
from l2p_transfer.paths import RunPaths

KEPT: Mapping[str, tuple[str, ...]] = {
    "prompts": ("prompts",),
    "filter": ("prompts",),
    "training": ("train/model/sampling.json",),
    "evaluation": ("train/model/sampling.json", "evaluation"),
    "report": ("report.html", "report.md", "samples"),
}
"""Files and folders that each stage leaves, beside what lies there already."""
LEDGERS = ("config.toml", "provenance.json", "timings.json", "metrics.jsonl")
INITIAL = "train/initial"
"""Where the trainer looks for the model to begin with, on a machine that has none."""


class RunStorage(StageCopies):
    """The run's files at `run.storage`."""

    def __init__(self, config: Config, paths: RunPaths) -> None:
        super().__init__(config.run.storage, paths.root, KEPT, LEDGERS)
        self.config, self.paths = config, paths

    def put(self, store: Store, stage: str) -> None:
        if stage == "surgery":
            store.push(self.paths.initial, INITIAL, last=["transformer/config.json"])
        super().put(store, stage)

    def get(self, store: Store, stage: str) -> None:
        if stage == "training":
            from l2p_train.run.mirror import Mirror

            from l2p_transfer.stages import link_model

            Mirror(self.config.train).fetch()
            link_model(self.paths)
        super().get(store, stage)

"""A run at an address (`run.storage`): another machine, or this one with an empty disk, goes on with it.

The corpus and an LLM's answers are written there and read from there. Of everything else a stage leaves a
copy when it is done, its marker last; the training does so at every checkpoint. What is missing here is
fetched before the first stage. Without an address everything here does nothing.
"""

from collections.abc import Mapping

from l2p_run.places import read_json_if_whole
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


class RunStorage:
    """The run's files at `run.storage`."""

    def __init__(self, config: Config, paths: RunPaths) -> None:
        """Finds the filesystem; nothing is read or written yet."""
        self.config, self.paths = config, paths
        self.store = Store(config.run.storage) if config.run.storage else None

    def reachable(self) -> None:
        """Raises `UserError` if the address cannot be read: a mistyped bucket, no credentials."""
        if self.store is not None:
            self.store.files("stages")

    def fetch(self, stages: list[str]) -> None:
        """Downloads what the stages that are done left, as far as it is newer than what is here.

        Raises:
            UserError: the address cannot be read or written.
        """
        if self.store is None:
            return
        self.store.check()
        there = set(self.store.files("stages"))
        if not self.paths.config.is_file():
            for name in LEDGERS:
                if self.store.read(name) is not None:
                    self.store.get(name, self.paths.root / name)
        for stage in stages:
            marker = self.paths.marker(stage)
            name = marker.relative_to(self.paths.root).as_posix()
            here = read_json_if_whole(marker) or {}
            if name in there and self._ended(name) > str(here.get("ended", "")):
                self._get(stage)
                self.store.get(name, marker)

    def keep(self, stage: str) -> None:
        """Uploads what a stage that is done left."""
        if self.store is None:
            return
        self._put(stage)
        for name in LEDGERS:
            self.store.put(self.paths.root / name, name)
        marker = self.paths.marker(stage)
        self.store.put(marker, marker.relative_to(self.paths.root).as_posix())

    def _put(self, stage: str) -> None:
        assert self.store is not None
        if stage == "surgery":
            self.store.push(self.paths.initial, INITIAL, last=["transformer/config.json"])
        for name in KEPT.get(stage, ()):
            path = self.paths.root / name
            if path.is_dir():
                self.store.push(path, name)
            elif path.is_file():
                self.store.put(path, name)

    def _get(self, stage: str) -> None:
        from l2p_train.run.mirror import Mirror

        from l2p_transfer.stages import link_model

        assert self.store is not None
        if stage == "training":
            Mirror(self.config.train).fetch()
            link_model(self.paths)
        for name in KEPT.get(stage, ()):
            if files := self.store.files(name):
                path = self.paths.root / name
                if files == [name]:
                    self.store.get(name, path)
                else:
                    self.store.pull(name, path)

    def _ended(self, name: str) -> str:
        import json

        assert self.store is not None
        try:
            content = json.loads(self.store.read(name) or b"{}")
            return str(content.get("ended", "")) if content.get("state") == "done" else ""
        except (ValueError, AttributeError):  # damaged: the stage runs again
            return ""

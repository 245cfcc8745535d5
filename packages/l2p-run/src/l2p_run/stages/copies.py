"""What the stages of a run leave, kept at an address, so that another machine can go on.

Of everything that a stage leaves a copy is made when it is done, its marker last. What is missing here, or
newer there, is fetched before the first stage. Without an address everything here does nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from l2p_run.places import read_json_if_whole
from l2p_run.stages import marker_path
from l2p_run.storage.store import Store


class StageCopies:
    """A run's files at an address; a run with files of other kinds overrides `put` and `get`."""

    def __init__(
        self,
        address: str | None,
        folder: Path,
        kept: Mapping[str, Sequence[str]],
        ledgers: Sequence[str] = (),
    ) -> None:
        """Find the filesystem; nothing is read or written yet.

        Args:
            address: such as s3://bucket/run; None: no copies.
            folder: of the run.
            kept: files and folders that each stage leaves, relative to `folder`.
            ledgers: files of the whole run; the first one says that a run is in `folder`.

        Raises:
            UserError: the filesystem is not known, or the package that speaks to it is missing.
        """
        self.store = Store(address) if address else None
        self.folder, self.kept, self.ledgers = folder, kept, ledgers

    def reachable(self) -> None:
        """Raise `UserError` if the address cannot be read: a mistyped bucket, no credentials."""
        if self.store is not None:
            self.store.files("stages")

    def fetch(self, stages: Iterable[str]) -> None:
        """Download what the stages that are done left, as far as it is newer than what is here.

        Raises:
            UserError: the address cannot be read or written.
        """
        if self.store is None:
            return
        self.store.check()
        there = set(self.store.files("stages"))
        if self.ledgers and not (self.folder / self.ledgers[0]).is_file():
            for name in self.ledgers:
                if self.store.read(name) is not None:
                    self.store.get(name, self.folder / name)
        for stage in stages:
            marker = marker_path(self.folder, stage)
            name = marker.relative_to(self.folder).as_posix()
            here = read_json_if_whole(marker) or {}
            if name in there and self._ended(self.store, name) > str(here.get("ended", "")):
                self.get(self.store, stage)
                self.store.get(name, marker)

    def keep(self, stage: str) -> None:
        """Upload what a stage that is done left."""
        if self.store is None:
            return
        self.put(self.store, stage)
        for name in self.ledgers:
            self.store.put(self.folder / name, name)
        marker = marker_path(self.folder, stage)
        self.store.put(marker, marker.relative_to(self.folder).as_posix())

    def put(self, store: Store, stage: str) -> None:
        """Upload the files and folders of a stage."""
        for name in self.kept.get(stage, ()):
            path = self.folder / name
            if path.is_dir():
                store.push(path, name)
            elif path.is_file():
                store.put(path, name)

    def get(self, store: Store, stage: str) -> None:
        """Download the files and folders of a stage."""
        for name in self.kept.get(stage, ()):
            if files := store.files(name):
                path = self.folder / name
                if files == [name]:
                    store.get(name, path)
                else:
                    store.pull(name, path)

    def _ended(self, store: Store, name: str) -> str:
        """Return when the stage of a marker ended there, "" where it is not done."""
        try:
            content = json.loads(store.read(name) or b"{}")
            return str(content.get("ended", "")) if content.get("state") == "done" else ""
        except (ValueError, AttributeError):  # damaged: the stage runs again
            return ""

"""A run that outlives its machine: what it needs to go on, kept at an address as well (`TrainConfig.mirror`).

    MIRROR/initial/                   the model that it starts from
           checkpoints/step-000500/   as in `output`; state.json is written last and removed first
           conditioning/HASH/         text embeddings
           metrics.jsonl, samples/    as of the last checkpoint
           model/, result.json        at the end

With it `output` may lie on a disk of each machine's own, and any machine goes on with the run. Without it
every method here does nothing. Collective methods are called by all processes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from l2p_train.config import TrainConfig
from l2p_train.data.storage import Store, one_at_a_time
from l2p_train.errors import TrainError
from l2p_train.run.checkpoint import Checkpoint, list_checkpoints

_MODEL_IS_WHOLE = "transformer/config.json"


class Mirror:
    """What lies at `config.mirror`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.output = config, config.output
        self.store = Store(config.mirror) if config.mirror else None

    def settle(self, rank: int) -> None:
        """Bring mirror and `output` to the same state, on every machine; collective."""
        if self.store is None:
            return
        if rank == 0:
            self.fetch()
            self.catch_up()
        torch.distributed.barrier()
        self.fetch(drop=True)

    def fetch(self, drop: bool = False) -> None:
        """Download what this machine lacks to go on, or of a finished run its model.

        Args:
            drop: remove local checkpoints that are newer than the mirror's newest: not all processes have
                them.
        """
        if self.store is None:
            return
        with one_at_a_time(self.output / ".mirror.lock"):
            remote = set(self.store.files())
            there = self._steps_of_result(remote=True)
            if there > self._steps_of_result(remote=False):
                self.store.pull("model", self.output / "model")
                self._fetch_reports(self.store, remote)
                self.store.get("result.json", self.output / "result.json")
            if f"initial/{_MODEL_IS_WHOLE}" in remote and not (self.config.model / _MODEL_IS_WHOLE).is_file():
                self.store.pull("initial", self.config.model)
            if there != self.config.steps:
                self._fetch_checkpoints(self.store, remote, drop)

    def _fetch_checkpoints(self, store: Store, remote: set[str], drop: bool) -> None:
        """Download the newest one; all, where an older one may be the best."""
        steps = self._steps(remote)
        local = {one.path.name for one in self._local() if _whole(one)}
        for step in steps if self.config.validation_images else steps[-1:]:
            if step not in local:
                store.pull(f"checkpoints/{step}", self.output / "checkpoints" / step)
                if step == steps[-1]:
                    self._fetch_reports(store, remote)
        for one in self._local() if drop and steps else ():
            if one.path.name > steps[-1]:
                shutil.rmtree(one.path)

    def _fetch_reports(self, store: Store, remote: set[str]) -> None:
        for name in remote:
            if name in ("metrics.jsonl", "freeze_table.json") or name.startswith("samples/"):
                store.get(name, self.output / name)

    def catch_up(self) -> None:
        """Upload what the mirror lacks; for one process.

        Raises:
            TrainError: it cannot be written.
        """
        if self.store is None:
            return
        self.store.check()
        remote = set(self.store.files())
        if f"initial/{_MODEL_IS_WHOLE}" not in remote and self.config.model.is_dir():
            self.store.push(self.config.model, "initial", last=[_MODEL_IS_WHOLE])
        newest = self._steps(remote)[-1:] or [""]
        for one in self._local():
            if one.path.name > newest[0] and _whole(one):
                self.store.push(one.path, f"checkpoints/{one.path.name}", last=["state.json"])
        if self._steps_of_result(remote=False) > self._steps_of_result(remote=True):
            self.put_result()

    def share(self, folder: Path) -> None:
        """Give all machines the files of a folder of `output`, which never change; collective."""
        if self.store is None:
            return
        under = folder.relative_to(self.output).as_posix()
        with one_at_a_time(self.output / ".mirror.lock"):
            there = set(self.store.files(under))
            for path in sorted(folder.glob("*.safetensors")):
                if f"{under}/{path.name}" not in there:
                    self.store.put(path, f"{under}/{path.name}")
        torch.distributed.barrier()
        with one_at_a_time(self.output / ".mirror.lock"):
            for name in self.store.files(under):
                if not (self.output / name).is_file():
                    self.store.get(name, self.output / name)
        torch.distributed.barrier()

    def put_part(self, path: Path, step: int) -> str | None:
        """Upload one process's file of a checkpoint; return what went wrong, if something did."""
        if self.store is None:
            return None
        try:
            self.store.put(path, f"checkpoints/step-{step:06d}/{path.name}")
        except TrainError as error:
            return str(error)
        return None

    def complete(self, checkpoint: Checkpoint) -> None:
        """Download the parts of a checkpoint that other machines wrote; for one process."""
        for path in checkpoint.files() if self.store else ():
            if self.store and not path.is_file():
                self.store.get(f"checkpoints/{checkpoint.path.name}/{path.name}", path)

    def finish_checkpoint(self, folder: Path) -> None:
        """Make a checkpoint whose parts are there the newest one, and drop those that are gone here; for
        one process."""
        if self.store is None:
            return
        self._put_reports(self.store)
        self.store.put(folder / "state.json", f"checkpoints/{folder.name}/state.json")
        kept = {one.path.name for one in self._local()}
        gone = [name for name in self.store.files("checkpoints") if name.split("/")[1] not in kept]
        self.store.remove(sorted(gone, key=lambda name: not name.endswith("state.json")))

    def put_result(self) -> None:
        """Upload the model and, last, result.json; for one process."""
        if self.store is None:
            return
        if self.store.read("result.json") is not None:
            self.store.remove(["result.json"])
        self.store.push(self.output / "model", "model")
        self._put_reports(self.store)
        self.store.put(self.output / "result.json", "result.json")

    def _put_reports(self, store: Store) -> None:
        for name in ("metrics.jsonl", "freeze_table.json"):
            if (self.output / name).is_file():
                store.put(self.output / name, name)
        there = set(store.files("samples"))
        for path in sorted((self.output / "samples").glob("*.png")):
            if f"samples/{path.name}" not in there:
                store.put(path, f"samples/{path.name}")

    def _local(self) -> list[Checkpoint]:
        return list_checkpoints(self.output / "checkpoints")

    def _steps(self, remote: set[str]) -> list[str]:
        """Return the names of the mirror's finished checkpoints, oldest first."""
        return sorted(name.split("/")[1] for name in remote if name.endswith("/state.json"))

    def _steps_of_result(self, remote: bool) -> int:
        """Return how many steps a finished run has; -1: there is none."""
        assert self.store is not None
        path = self.output / "result.json"
        if remote:
            content = self.store.read("result.json")
        else:
            content = path.read_bytes() if path.is_file() and (self.output / "model").is_dir() else None
        try:
            return int(json.loads(content)["steps"]) if content else -1
        except (ValueError, KeyError, TypeError):  # damaged: it is made again
            return -1


def _whole(checkpoint: Checkpoint) -> bool:
    """Say whether all files of a checkpoint are on this machine: each process wrote its own."""
    return all(path.is_file() for path in checkpoint.files())

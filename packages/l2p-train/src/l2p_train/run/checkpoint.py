"""Exact resume: safetensors of what trains, by parameter name, independent of ZeRO stage and number of
processes.

    checkpoints/step-000500/state.json             step, config, hashes of the files and the first model
                            rank-000.safetensors   master/NAME, exp_avg/NAME, exp_avg_sq/NAME, ema/NAME

The tensors are dealt out over the processes. Randomness, data position and learning rate are functions of
the step, so nothing else is state. A checkpoint is written to a temporary folder and renamed; pickle is
never involved.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from l2p_run import hashes
from l2p_run.errors import raised_as
from l2p_run.places import read_json_if_whole, write_json
from torch import Tensor

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.machine.tensors import open_tensors, save_tensors
from l2p_train.zero.fp32_masters import Masters

if TYPE_CHECKING:
    from l2p_train.run.mirror import Mirror

FORMAT = 1
_OF_A_STATE = {"step": int, "files": dict, "config": dict}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint on disk."""

    path: Path
    step: int  # optimiser steps done
    state: dict[str, Any]

    def files(self) -> list[Path]:
        """Return its tensor files."""
        return [self.path / name for name in sorted(self.state["files"])]


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """Return the finished checkpoints, oldest first.

    One whose state.json is damaged counts as none, so that a run goes on from the one before it.

    Raises:
        TrainError: one is of another format, or cannot be read at all.
    """
    found = []
    for path in sorted(directory.glob("step-*/state.json")):
        with raised_as(TrainError):
            state = read_json_if_whole(path)
        if state is None or not isinstance(state.get("format", FORMAT), int):
            logger.warning("%s is damaged; its checkpoint is left out", path)
            continue
        if state.get("format", FORMAT) != FORMAT:
            raise TrainError(f"{path}: checkpoint format {state.get('format')}; this version reads {FORMAT}")
        if not all(isinstance(state.get(key), kind) for key, kind in _OF_A_STATE.items()):
            logger.warning("%s is damaged; its checkpoint is left out", path)
            continue
        found.append(Checkpoint(path.parent, state["step"], state))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def best_checkpoint(found: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the one with the lowest held-out loss, the earlier of equals; None if none was validated."""
    validated = [one for one in found if one.state.get("validation_loss") is not None]
    return min(validated, key=lambda one: (one.state["validation_loss"], one.step), default=None)


def save_checkpoint(
    directory: Path,
    step: int,
    config: TrainConfig,
    masters: Masters,
    ema: list[Tensor] | None,
    mirror: Mirror | None = None,
    **extra: Any,
) -> Checkpoint:
    """Write the checkpoint of `step`, drop all but the newest `keep_checkpoints` and the best; collective.

    Args:
        mirror: gets a copy.
        extra: JSON values for state.json: `base`, the hash of the model started from, and
            `validation_loss`, by which the best is known, among them.

    Raises:
        TrainError: the mirror cannot be written; the checkpoint is whole in `directory`.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    final, temporary = directory / f"step-{step:06d}", directory / f".step-{step:06d}.tmp"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    torch.distributed.barrier()
    temporary.mkdir(parents=True, exist_ok=True)  # with a mirror, other machines have disks of their own
    path = temporary / f"rank-{rank:03d}.safetensors"
    save_tensors(_share(masters, ema, rank, world_size), path)
    _sync(path)
    problem = mirror.put_part(path, step) if mirror else None
    written: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(written, (path.name, hashes.of_file(path), problem))
    problems = [one for *_, one in written if one]
    state = {
        "format": FORMAT,
        "step": step,
        "samples": step * config.batch_size,
        "processes": world_size,
        "files": {name: digest for name, digest, _ in written},
        "config": config.to_dict(),
        **extra,
    }
    if rank == 0:
        with raised_as(TrainError):
            write_json(temporary / "state.json", state)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        found = list_checkpoints(directory)
        best = best_checkpoint(found)
        for old in found[: -max(1, config.keep_checkpoints)]:
            if old is not best:
                shutil.rmtree(old.path)
        if mirror and not problems:
            mirror.finish_checkpoint(final)
    torch.distributed.barrier()
    shutil.rmtree(temporary, ignore_errors=True)
    if problems:
        raise TrainError(f"{problems[0]}; the checkpoint is whole in {final}")
    return Checkpoint(final, step, state)


def _share(masters: Masters, ema: list[Tensor] | None, rank: int, world_size: int) -> dict[str, Tensor]:
    """Return the tensors that this process writes, whole and on the CPU; collective."""
    kinds: dict[str, list[Tensor]] = {
        "master": masters.shards,
        "exp_avg": masters.moments("exp_avg"),
        "exp_avg_sq": masters.moments("exp_avg_sq"),
    }
    if ema is not None:
        kinds["ema"] = ema
    mine: dict[str, Tensor] = {}
    for kind, values in kinds.items():
        for index, (name, tensor) in enumerate(masters.gather(values)):
            if index % world_size == rank:
                mine[f"{kind}/{name}"] = tensor.to("cpu", copy=True).contiguous()
    return mine


def load_checkpoint(checkpoint: Checkpoint, masters: Masters, ema: list[Tensor] | None) -> None:
    """Restore masters, moments, average and the model's weights; collective.

    Raises:
        TrainError: a file is missing, was changed after it was written, or lacks a tensor.
    """
    verify_together(checkpoint)
    whole = TensorFiles(checkpoint.files())
    moments = [[torch.empty_like(shard, requires_grad=False) for shard in masters.shards] for _ in range(2)]
    for name, values in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
        masters.scatter(values, whole.of(name))
    if ema is not None:
        masters.scatter(ema, whole.of("ema" if whole.has_kind("ema") else "master"))
    masters.scatter(masters.shards, whole.of("master"))
    masters.set_moments(moments[0], moments[1], step=checkpoint.step)
    masters.write_to_model(masters.shards)


def verify(checkpoint: Checkpoint) -> None:
    """Raise `TrainError` unless every file is there and unchanged; in one process."""
    _refuse_damaged(checkpoint, _damaged(checkpoint, sorted(checkpoint.state["files"])))


def verify_together(checkpoint: Checkpoint) -> None:
    """Verify as above, the processes of a machine sharing the 30 GB or more; all raise, or none does.
    Collective.
    """
    # Not of the whole run: machines may have disks, and so copies, of their own.
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    rank = int(os.environ["LOCAL_RANK"]) if sharing > 1 else 0
    mine = _damaged(checkpoint, sorted(checkpoint.state["files"])[rank::sharing])
    found: list[list[str]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    _refuse_damaged(checkpoint, sorted(name for names in found for name in names))


def _damaged(checkpoint: Checkpoint, names: Sequence[str]) -> list[str]:
    """Return which of these files are missing or changed."""
    paths = {name: checkpoint.path / name for name in names}
    wanted = checkpoint.state["files"]
    return [
        name for name, path in paths.items() if not path.is_file() or hashes.of_file(path) != wanted[name]
    ]


def _refuse_damaged(checkpoint: Checkpoint, names: Sequence[str]) -> None:
    if names:
        raise TrainError(
            f"{checkpoint.path / names[0]} is missing or damaged; delete {checkpoint.path} to resume from an "
            f"older one"
        )


class TensorFiles:
    """Read access to tensors `KIND/NAME` spread over safetensors files."""

    def __init__(self, paths: list[Path]) -> None:
        self._handles = [open_tensors(path) for path in paths]
        self._where = {name: handle for handle in self._handles for name in handle.keys()}  # noqa: SIM118

    def has_kind(self, kind: str) -> bool:
        """Say whether there are tensors of this kind."""
        return any(name.startswith(f"{kind}/") for name in self._where)

    def names(self, kind: str) -> list[str]:
        """Return the parameter names stored under a kind."""
        return [name.removeprefix(f"{kind}/") for name in self._where if name.startswith(f"{kind}/")]

    def of(self, kind: str) -> Callable[[str], Tensor]:
        """Return the function parameter name -> stored tensor of a kind."""

        def read(name: str) -> Tensor:
            if f"{kind}/{name}" not in self._where:
                raise TrainError(
                    f"the checkpoint lacks {kind}/{name}: it was written with other trainable tensors"
                )
            return self._where[f"{kind}/{name}"].get_tensor(f"{kind}/{name}")

        return read


def _sync(path: Path) -> None:
    """Flush a file to disk, so that the later rename never names an empty one."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

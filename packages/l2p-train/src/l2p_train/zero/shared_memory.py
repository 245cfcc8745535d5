"""Gradients and updates between the processes of one machine's CPU, through memory that they share.

gloo sends float32 sums through the loopback network in threads of its own, which take the cores that compute.
Here each process writes what it has, in its own dtype, waits for the others, and reads theirs.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

SHARED = Path("/dev/shm")
MOST_BYTES = 1 << 30  # of the shared file; larger models go through gloo, whose time they do not notice
_PARTS = 2  # used by turns: who writes to one has passed the wait after which nobody reads it any more


class SharedMemory:
    """A file in memory with a place for each process. All methods are collective, in the same order.

    Args:
        size: bytes of the largest exchange of a process.
    """

    def __init__(self, file: Path, size: int) -> None:
        self.rank, self.processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.size, self.turn = size, 0
        with file.open("r+b") as opened:
            self.memory = torch.frombuffer(
                mmap.mmap(opened.fileno(), _PARTS * self.processes * size), dtype=torch.uint8
            )

    def gather(self, mine: Sequence[Tensor], sizes: Sequence[int] | None = None) -> list[Tensor]:
        """Return each process's tensors as a flat one, in the order of ranks; valid until the next call but
        one.

        Args:
            mine: of one dtype.
            sizes: elements of each process, where they differ.
        """
        sizes = sizes or [sum(one.numel() for one in mine)] * self.processes
        dtype = mine[0].dtype if mine else torch.bfloat16
        self.turn = (self.turn + 1) % _PARTS
        places = [self._place(rank, sizes[rank], dtype) for rank in range(self.processes)]
        if mine:
            torch._foreach_copy_(_parts(places[self.rank], mine), list(mine))
        torch.distributed.barrier()
        return places

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their means over all processes, summed in float32."""
        share = 1.0 / self.processes
        parts = self.gather(tensors)
        total = parts[0].to(torch.float32, copy=True).mul_(share)
        for part in parts[1:]:
            total.add_(part, alpha=share)
        torch._foreach_copy_(list(tensors), _parts(total, tensors))

    def _place(self, rank: int, elements: int, dtype: torch.dtype) -> Tensor:
        start = (self.turn * self.processes + rank) * self.size
        return self.memory[start : start + elements * dtype.itemsize].view(dtype)


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of a flat tensor in the shapes of others."""
    parts = flat.split([one.numel() for one in like])
    return [part.view(one.shape) for part, one in zip(parts, like, strict=True)]


def share_memory(size: int) -> SharedMemory | None:
    """Set up exchanges of up to `size` bytes a process; None where processes have GPUs or other machines, or
    where there is no room. Collective."""
    processes = torch.distributed.get_world_size()
    if processes == 1 or torch.cuda.is_available() or os.environ.get("LOCAL_WORLD_SIZE") != str(processes):
        return None
    size += -size % 64
    told: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        told = [_file_of(_PARTS * processes * size)]
    torch.distributed.broadcast_object_list(told, src=0)
    if told[0] is None:
        return None
    try:
        return SharedMemory(Path(told[0]), size)
    finally:
        torch.distributed.barrier()  # all have it open: its name is not needed, nor left behind by a crash
        if torch.distributed.get_rank() == 0:
            os.unlink(told[0])


def _file_of(size: int) -> str | None:
    """Return a file in memory of a size whose pages are there, or None: a container's may have 64 MB."""
    if size > MOST_BYTES or not SHARED.is_dir():
        return None
    try:
        number, name = tempfile.mkstemp(prefix="l2p-train-", dir=SHARED)
    except OSError:
        return None
    try:
        os.posix_fallocate(number, 0, size)
    except OSError:
        os.unlink(name)
        return None
    finally:
        os.close(number)
    return name

"""Writing safetensors files and directories: tensors go from file to file, and never more than one is held.

Tensors that keep their dtype are copied as byte ranges, neighbours in one range, inside the kernel
(copy_file_range). A header may have any length, so a file's is padded until its longest range lies at the
same place within a page as in its source: the kernel then moves whole pages, for two thirds of the processor
time on ext4, and XFS and Btrfs can share the blocks instead. A header is written last, into room that was
left for it, so that a file can be filled before all of its tensors are known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from l2p_arch.errors import ArchError
from l2p_arch.files.tensor_files import ITEM_BYTES, WEIGHTS, StoredTensor, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

_PAGE = 4096
_PIECE = 256 << 20  # bytes per call to the kernel, between which a copy can be stopped
_BUFFER = 512 << 10  # bytes per read and write where the kernel does not copy; stays in a processor's cache
_SPARE = 64 << 10  # bytes of header for tensors that come later


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A tensor to write: copied from a stored one (and cast if the dtype differs), or made on demand."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    origin: StoredTensor | Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def same_bytes(self) -> StoredTensor | None:
        """Where its bytes lie as they will be written; None where it is cast or made."""
        origin = self.origin
        return origin if isinstance(origin, StoredTensor) and origin.dtype == self.dtype else None


def write_file(
    path: Path, tensors: Iterable[PlannedTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file, tensor by tensor."""
    with _OpenFile(path, list(tensors), metadata or {}, spare=0) as file:
        file.fill(lambda: None)


def write_directory(
    directory: Path, tensors: Sequence[PlannedTensor], *, max_shard_bytes: int = 5 << 30
) -> None:
    """Write the weights of a diffusers model directory: one file, or shards of at most `max_shard_bytes` and
    an index."""
    with DirectoryWriter(directory, max_shard_bytes) as writer:
        writer.write(tensors)


class DirectoryWriter:
    """Writes the weights of a diffusers model directory in several goes, the first ones in the background.

    As a context manager: leaving it completes the files and the index; leaving it by an exception stops the
    background's copying.
    """

    def __init__(self, directory: Path, max_shard_bytes: int) -> None:
        self._directory = directory
        self._max_shard_bytes = max_shard_bytes
        self._files: list[_OpenFile] = []
        self._stopped = Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="l2p-copy")
        self._running: list[Future[None]] = []

    def start(self, tensors: Sequence[PlannedTensor]) -> None:
        """Begin to write; a failure is raised by the next call of `write` or on leaving."""
        self._running.append(self._pool.submit(self._write, tensors, _SPARE))

    def write(self, tensors: Sequence[PlannedTensor]) -> None:
        """Write after all that was started before, into its last file where there is room."""
        self._wait()
        self._write(tensors, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is not None:
                self._stopped.set()
            else:
                self._wait()
        finally:
            self._pool.shutdown(cancel_futures=True)
            for file in self._files[-1:]:
                file.__exit__(kind)
        if kind is None:
            self._name_files()

    def _wait(self) -> None:
        while self._running:
            self._running.pop(0).result()

    def _write(self, tensors: Sequence[PlannedTensor], spare: int) -> None:
        room = self._max_shard_bytes - (self._files[-1].size if self._files else 0)
        if self._files and sum(tensor.size for tensor in tensors) <= room and self._files[-1].takes(tensors):
            self._files[-1].fill(self._check)
            return
        shards = _shards(tensors, self._max_shard_bytes)
        for shard in shards:
            for file in self._files[-1:]:
                file.__exit__(None)
            path = self._directory / f"shard-{len(self._files)}"
            self._files.append(_OpenFile(path, shard, {}, spare=spare if shard is shards[-1] else 0))
            self._files[-1].fill(self._check)

    def _check(self) -> None:
        if self._stopped.is_set():
            raise InterruptedError("the copying was stopped")

    def _name_files(self) -> None:
        count = len(self._files)
        if count == 1:
            self._files[0].path.rename(self._directory / f"{WEIGHTS}.safetensors")
            return
        weight_map = {}
        for number, file in enumerate(self._files, start=1):
            name = f"{WEIGHTS}-{number:05d}-of-{count:05d}.safetensors"
            file.path.rename(self._directory / name)
            weight_map.update(dict.fromkeys(file.entries, name))
        total = sum(file.size for file in self._files)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        path = self._directory / f"{WEIGHTS}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _OpenFile:
    """A safetensors file on its way; leaving the context writes its header."""

    def __init__(
        self, path: Path, tensors: Sequence[PlannedTensor], metadata: Mapping[str, str], *, spare: int
    ) -> None:
        self.path = path
        self.size = 0
        self.entries: dict[str, Any] = {}
        self._metadata = {"format": "pt", **metadata}
        self._waiting: list[PlannedTensor] = []
        self._enter(tensors)
        least = len(self._header()) + spare
        self._room = least + (_shift(self._waiting, self.entries) - least) % _PAGE
        self._file = path.open("wb")
        self._file.seek(8 + self._room)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file as file:
            if kind is None:
                file.seek(0)
                file.write(self._room.to_bytes(8, "little") + self._header().ljust(self._room))

    def takes(self, tensors: Sequence[PlannedTensor]) -> bool:
        """Add tensors, if the room of the header and their alignment allow it."""
        before = dict(self.entries), self.size
        self._enter(tensors)
        starts = ((self.entries[tensor.name]["data_offsets"][0], tensor) for tensor in tensors)
        aligned = all(start % ITEM_BYTES[tensor.dtype] == 0 for start, tensor in starts)
        if aligned and len(self._header()) <= self._room:
            return True
        (self.entries, self.size), self._waiting = before, []
        return False

    def fill(self, check: Callable[[], None]) -> None:
        """Write the bytes of the tensors that were added; `check` may raise in between."""
        for run in _runs(self._waiting):
            check()
            first, last = run[0].same_bytes, run[-1].same_bytes
            if first is None or last is None:
                self._file.write(_bytes_of(run[0]))
                continue
            with first.path.open("rb") as source:
                for start in range(first.start, last.stop, _PIECE):
                    check()
                    copy_range(source, start, min(last.stop - start, _PIECE), self._file)
        self._waiting = []

    def _enter(self, tensors: Sequence[PlannedTensor]) -> None:
        # Widest dtypes first: every tensor then starts at a multiple of its item size.
        self._waiting = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], *_place(tensor)))
        for tensor in self._waiting:
            stop = self.size + tensor.size
            entry = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [self.size, stop]}
            self.entries[tensor.name] = entry
            self.size = stop

    def _header(self) -> bytes:
        text = json.dumps({"__metadata__": self._metadata, **self.entries}, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)


def _place(tensor: PlannedTensor) -> tuple[bool, str, int, str]:
    """Sort tensors as they lie in their sources, and those that are made behind them."""
    if isinstance(tensor.origin, StoredTensor):
        return False, str(tensor.origin.path), tensor.origin.start, tensor.name
    return True, "", 0, tensor.name


def _shards(tensors: Sequence[PlannedTensor], max_shard_bytes: int) -> list[list[PlannedTensor]]:
    """Return tensors by the file that they go to; one that is at least half full ends where its source file
    ends.
    """
    shards: list[list[PlannedTensor]] = [[]]
    room, source = max_shard_bytes, ""
    for tensor in sorted(tensors, key=_place):
        _, path, *_ = _place(tensor)
        ends = path != source and room <= max_shard_bytes // 2
        if shards[-1] and (ends or tensor.size > room):
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room, source = room - tensor.size, path
    return shards


def _runs(tensors: Sequence[PlannedTensor]) -> Iterator[list[PlannedTensor]]:
    """Yield tensors whose bytes lie one behind the other in one file, as far as they do; all others alone."""
    run: list[PlannedTensor] = []
    for tensor in tensors:
        last, this = run[-1].same_bytes if run else None, tensor.same_bytes
        if last and this and last.path == this.path and last.stop == this.start:
            run.append(tensor)
            continue
        if run:
            yield run
        run = [tensor]
    if run:
        yield run


def _shift(tensors: Sequence[PlannedTensor], entries: Mapping[str, Any]) -> int:
    """Return the length of the header, modulo a page, with which the longest run lies as it does in its
    source.
    """
    runs = [run for run in _runs(tensors) if run[0].same_bytes]
    if not runs:
        return 0
    longest = max(runs, key=lambda run: sum(tensor.size for tensor in run))[0]
    assert longest.same_bytes is not None
    shift = longest.same_bytes.start - entries[longest.name]["data_offsets"][0] - 8
    return (
        int(shift) if shift % 8 == 0 else 0
    )  # otherwise no tensor would start at a multiple of its item size


def _bytes_of(tensor: PlannedTensor) -> memoryview:
    """Return the tensor's value as it is stored."""
    import torch

    origin = tensor.origin
    value = origin.read() if isinstance(origin, StoredTensor) else origin()
    if tuple(value.shape) != tensor.shape:
        raise AssertionError(f"{tensor.name}: planned {tensor.shape}, made {tuple(value.shape)}")
    stored = value.detach().to("cpu", torch_dtype(tensor.dtype)).contiguous()
    if tensor.dtype == "F16" and bool((stored.isinf() & value.detach().cpu().float().isfinite()).any()):
        raise ArchError(f"{tensor.name} has values beyond float16's 65504; use bfloat16 or float32")
    return stored.reshape(-1).view(torch.uint8).numpy().data


def copy_range(source: BinaryIO, start: int, count: int, target: BinaryIO) -> None:
    """Append `count` bytes of `source`, from `start` on, to `target`; inside the kernel where it can."""
    target.flush()
    position = target.tell()
    if hasattr(os, "copy_file_range"):
        reader, writer = source.fileno(), target.fileno()
        piece = -position % _PAGE or count  # whole pages from then on
        try:
            while count and (moved := os.copy_file_range(reader, writer, min(piece, count), start, position)):
                start, position, count, piece = start + moved, position + moved, count - moved, count
        except (
            OSError
        ):  # not between these file systems: copy the rest through memory, which meets real errors too
            pass
    target.seek(position)
    source.seek(start)
    while count:
        chunk = source.read(min(_BUFFER - target.tell() % _BUFFER, count))
        if not chunk:
            raise ArchError(f"{source.name} ended {count} bytes early while it was copied")
        target.write(chunk)
        count -= len(chunk)

"""Safetensors files as byte ranges: read headers, copy tensors from file to file, never hold more than one.

Tensors that keep their dtype move inside the kernel (copy_file_range) and never enter this process's memory.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from l2p_arch.errors import ArchError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
WEIGHTS = "diffusion_pytorch_model"
_CHUNK = 8 << 20


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies: bytes [start, stop) of the file at `path`."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> Tensor:
        """The tensor in memory of its own (not a view of the file)."""
        buffer = bytearray(self.stop - self.start)
        with self.path.open("rb") as file:
            file.seek(self.start)
            file.readinto(buffer)
        flat = (
            torch.frombuffer(buffer, dtype=DTYPES[self.dtype])
            if buffer
            else torch.empty(0, dtype=DTYPES[self.dtype])
        )
        return flat.reshape(self.shape)


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
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises:
        ArchError: the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise ArchError(f"{path} is not a file; give a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or not 2 <= length <= min(size - 8, 100 << 20):
            raise ArchError(f"{path} is not a safetensors file, or is cut off within its header")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ArchError):
                raise
            raise ArchError(f"{path} is not a safetensors file: its header cannot be read") from error
    end = max((tensor.stop for tensor in tensors.values()), default=8 + length)
    if end != size:
        state = "cut off" if size < end else "longer than its header says"
        raise ArchError(f"{path} is {state}: {size} bytes, but its header describes {end}; fetch it again")
    return tensors, metadata


def _stored(path: Path, name: str, entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in DTYPES:
        raise ArchError(f"{path} holds {name} as {dtype}, which is not supported; known: {', '.join(DTYPES)}")
    if stop - start != prod(shape) * DTYPES[dtype].itemsize:
        raise ArchError(f"{path} is damaged: {name} {shape} {dtype} does not fit its {stop - start} bytes")
    return StoredTensor(
        path=path, name=name, dtype=dtype, shape=shape, start=data_start + start, stop=data_start + stop
    )


def index_directory(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a diffusers model directory, sharded or not."""
    index = directory / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        try:
            weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArchError(f"{index} is no index of shards: it holds no weight_map") from error
        missing = [name for name in sorted(set(weight_map.values())) if not (directory / name).is_file()]
        if missing:
            raise ArchError(
                f"{directory} lacks {', '.join(missing)}, which its index names; fetch the model again"
            )
        shards = {name: read_header(directory / name)[0] for name in sorted(set(weight_map.values()))}
        absent = [name for name, shard in weight_map.items() if name not in shards[shard]]
        if absent:
            raise ArchError(
                f"{directory}: the index names {absent[0]}, which {weight_map[absent[0]]} does not hold"
            )
        return {name: shards[shard][name] for name, shard in weight_map.items()}
    single = directory / f"{WEIGHTS}.safetensors"
    if single.is_file():
        return read_header(single)[0]
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise ArchError(
            f"{directory} holds pickled weights, which are never loaded; save the model as safetensors"
        )
    raise ArchError(f"{directory} holds no {single.name} and no index of shards")


def write_file(
    path: Path, tensors: Iterable[PlannedTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file, tensor by tensor."""
    # Widest dtypes first: every tensor then starts at a multiple of its item size.
    ordered = sorted(tensors, key=lambda tensor: (-DTYPES[tensor.dtype].itemsize, tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for tensor in ordered:
        stop = position + tensor.size
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            _write_tensor(file, tensor)


def write_directory(
    directory: Path, tensors: Sequence[PlannedTensor], *, max_shard_bytes: int = 5 << 30
) -> None:
    """Write the weights of a diffusers model directory: one file, or shards of at most `max_shard_bytes` and
    an index."""
    shards: list[list[PlannedTensor]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        if tensor.size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.size
    if len(shards) == 1:
        write_file(directory / f"{WEIGHTS}.safetensors", shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{WEIGHTS}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / name, shard)
        weight_map.update({tensor.name: name for tensor in shard})
    index = {"metadata": {"total_size": sum(tensor.size for tensor in tensors)}, "weight_map": weight_map}
    path = directory / f"{WEIGHTS}.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tensor(file: BinaryIO, tensor: PlannedTensor) -> None:
    origin = tensor.origin
    if isinstance(origin, StoredTensor) and origin.dtype == tensor.dtype:
        with origin.path.open("rb") as source:
            copy_range(source, origin.start, origin.stop - origin.start, file)
        return
    value = origin.read() if isinstance(origin, StoredTensor) else origin()
    if tuple(value.shape) != tensor.shape:
        raise AssertionError(f"{tensor.name}: planned {tensor.shape}, made {tuple(value.shape)}")
    value = value.detach().to("cpu", DTYPES[tensor.dtype]).contiguous()
    file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def copy_range(source: BinaryIO, start: int, count: int, target: BinaryIO) -> None:
    """Append `count` bytes of `source`, from `start` on, to `target`; inside the kernel where it can."""
    target.flush()
    if hasattr(os, "copy_file_range"):
        try:
            while count and (moved := os.copy_file_range(source.fileno(), target.fileno(), count, start)):
                start, count = start + moved, count - moved
        except OSError:  # between some file systems: copy the rest through memory
            pass
        target.seek(0, os.SEEK_END)
    source.seek(start)
    while count:
        chunk = source.read(min(_CHUNK, count))
        if not chunk:
            raise ArchError(f"{source.name} ended {count} bytes early while it was copied")
        target.write(chunk)
        count -= len(chunk)

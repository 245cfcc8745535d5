"""Safetensors files as byte ranges: read headers, find tensors, load single ones."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

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

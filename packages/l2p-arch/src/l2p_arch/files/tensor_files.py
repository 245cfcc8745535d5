"""Safetensors files as byte ranges: read headers, find tensors, load single ones.

Torch is imported where a tensor is made and nowhere else: a copy begins seconds before it is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_arch.errors import ArchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "BF16": 2,
    "F16": 2,
    "I16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes per element of the dtypes that are supported, by the names that safetensors files give them."""
FLOATS = ("F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
"""Those of them in which weights are kept, unquantised."""
WEIGHTS = "diffusion_pytorch_model"
VARIANT_FILE = re.compile(
    r"(?P<stem>model|(diffusion_)?pytorch_model)"
    r"(\.(?P<variant>[^.-]+)(?P<shard>-\d{5}-of-\d{5})?(?P<suffix>\.safetensors)"
    r"|(?P<index>\.safetensors\.index)\.(?P<of>[^.]+)\.json)"
)
"""Names of weights that were saved with `variant=`, and of the index of their shards."""


def torch_dtype(name: str) -> torch.dtype:
    """PyTorch's dtype of a safetensors name in `ITEM_BYTES`."""
    import torch

    integers = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
    floats = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    others = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U8": torch.uint8}
    return {**integers, **floats, **others, "BOOL": torch.bool}[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the safetensors name of a dtype of PyTorch, or an ArchError where there is none."""
    name = next((name for name in ITEM_BYTES if torch_dtype(name) == dtype), None)
    if name is None:
        raise ArchError(f"{dtype} cannot be stored; known: {', '.join(ITEM_BYTES)}")
    return name


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
        """Return the tensor in memory of its own (not a view of the file)."""
        import torch

        dtype = torch_dtype(self.dtype)
        buffer = bytearray(self.stop - self.start)
        with self.path.open("rb") as file:
            file.seek(self.start)
            if file.readinto(buffer) != len(buffer):  # it has shrunk since its header was read
                raise ArchError(f"{self.path} ended within {self.name}; fetch or write it again")
        flat = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
        return flat.reshape(self.shape)


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a safetensors file by name, and its metadata.

    Raises:
        ArchError: the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise ArchError(f"{path} is not a file; give a safetensors file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or not 2 <= length <= min(size - 8, 100 << 20):
                raise ArchError(f"{path} is not a safetensors file, or is cut off within its header")
            text = file.read(length)
    except OSError as error:
        raise ArchError(f"{path} cannot be read: {error.strerror}") from error
    try:
        header: dict[str, Any] = json.loads(text, object_pairs_hook=_without_repetition)
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise TypeError("metadata of another kind")
        tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ArchError):
            raise
        raise ArchError(f"{path} is not a safetensors file: its header cannot be read") from error
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != end:
            raise ArchError(f"{path} is damaged: the bytes of {tensor.name} do not follow those before it")
        end = tensor.stop
    if end != size:
        state = "cut off" if size < end else "longer than its header says"
        raise ArchError(f"{path} is {state}: {size} bytes, but its header describes {end}; fetch it again")
    return tensors, metadata


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name stands there twice")
    return result


def _stored(path: Path, name: str, entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in ITEM_BYTES:
        known = ", ".join(ITEM_BYTES)
        raise ArchError(f"{path} holds {name} as {dtype}, which is not supported; known: {known}")
    if any(type(number) is not int or number < 0 for number in (start, stop, *shape)):
        raise ArchError(f"{path} is damaged: {name} has the shape {shape} and the offsets {start} to {stop}")
    if stop - start != prod(shape) * ITEM_BYTES[dtype]:
        raise ArchError(f"{path} is damaged: {name} {shape} {dtype} does not fit its {stop - start} bytes")
    return StoredTensor(
        path=path, name=name, dtype=dtype, shape=shape, start=data_start + start, stop=data_start + stop
    )


def index_directory(directory: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a diffusers model directory, sharded or not; of a variant, such as "fp16", where
    that is the only one."""
    found = variant(directory)
    middle = f".{found}" if found else ""
    index = directory / f"{WEIGHTS}.safetensors.index{middle}.json"
    if index.is_file():
        return _index_shards(index)
    single = directory / f"{WEIGHTS}{middle}.safetensors"
    if single.is_file():
        return read_header(single)[0]
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise ArchError(
            f"{directory} holds pickled weights, which are never loaded; save the model as safetensors"
        )
    raise ArchError(f"{directory} holds no {single.name} and no index of shards")


def variant(directory: Path, stem: str = WEIGHTS) -> str | None:
    """Return the variant, such as "fp16", that a model directory's weights were saved as; None where plain
    ones are there. `stem` begins their files' names: transformers' is "model"."""
    if any((directory / f"{stem}.safetensors{end}").is_file() for end in ("", ".index.json")):
        return None
    matches = (VARIANT_FILE.fullmatch(path.name) for path in directory.glob(f"{stem}.*.safetensors"))
    variants = sorted({match["variant"] for match in matches if match})
    if len(variants) > 1:
        raise ArchError(
            f"{directory} holds the variants {', '.join(variants)} and no plain weights; keep one of them"
        )
    return variants[0] if variants else None


def _index_shards(index: Path) -> dict[str, StoredTensor]:
    directory = index.parent
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        outside = [name for name in names if Path(name).name != name]
        missing = [name for name in names if not (directory / name).is_file()]
    except OSError as error:
        raise ArchError(f"{index} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchError(f"{index} is no index of shards: it holds no weight_map") from error
    if outside:
        raise ArchError(f"{index} names {outside[0]}, which is not a file beside it; fetch the model again")
    if missing:
        raise ArchError(
            f"{directory} lacks {', '.join(missing)}, which its index names; fetch the model again"
        )
    shards = {name: read_header(directory / name)[0] for name in names}
    absent = [name for name, shard in weight_map.items() if name not in shards[shard]]
    if absent:
        raise ArchError(
            f"{directory}: the index names {absent[0]}, which {weight_map[absent[0]]} does not hold"
        )
    tensors: dict[str, StoredTensor] = {}  # also those that the index forgot: diffusers would load them
    for shard in shards.values():
        twice = tensors.keys() & shard.keys()
        if twice:
            raise ArchError(f"{directory} holds {min(twice)} in two shards; fetch the model again")
        tensors |= shard
    return tensors

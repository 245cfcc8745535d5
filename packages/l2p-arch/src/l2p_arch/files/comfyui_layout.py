"""ComfyUI's names for a Z-Image transformer: packed projections, own names of norms, a prefix.

The published names are diffusers'. Both directions keep every byte: a packed projection holds the rows of
queries, keys and values one behind the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import TYPE_CHECKING

from l2p_arch.files.tensor_files import ITEM_BYTES, StoredTensor
from l2p_arch.files.tensor_writing import PlannedTensor

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "model.diffusion_model."
_PREFIXES = (PREFIX, "diffusion_model.")
_RENAMED = {".attention.out.": ".attention.to_out.0.", ".attention.q_norm.": ".attention.norm_q.",
            ".attention.k_norm.": ".attention.norm_k."}  # fmt: skip
_PACKED = re.compile(r"(?P<block>.+\.attention)\.qkv\.(?P<kind>weight|bias)")
_LETTERS = ("q", "k", "v")


def is_comfyui(names: Mapping[str, object]) -> bool:
    """Return whether these are a Z-Image's tensors by ComfyUI's names: a packed projection, or the prefix."""
    bare = {without_prefix(name) for name in names}
    return "layers.0.attention.qkv.weight" in bare or (
        len(bare & names.keys()) < len(bare) and "layers.0.feed_forward.w1.weight" in bare
    )


def without_prefix(name: str) -> str:
    """Return a tensor's name without what ComfyUI's checkpoints put before it."""
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)


def published_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the same bytes by the published names; other layouts pass as they are."""
    if not is_comfyui(tensors):
        return dict(tensors)
    bare = {without_prefix(name): tensor for name, tensor in tensors.items()}
    result: dict[str, StoredTensor] = {}
    embedder = bare.get("x_embedder.weight")
    patch = tensors_patch(embedder.shape) if embedder else 0
    for name, tensor in bare.items():
        packed = _PACKED.fullmatch(name)
        if packed:
            result |= _unpacked(tensor, packed["block"], packed["kind"], bare)
            continue
        for theirs, ours in _RENAMED.items():
            name = name.replace(theirs, ours)
        if name.startswith("x_embedder."):
            name = name.replace("x_embedder.", f"all_x_embedder.{patch}-1.")
        result[name] = replace(tensor, name=name)
    return result


def tensors_patch(shape: Sequence[int]) -> int:
    """Return the patch size of a pixel embedder (D, 3 P P); 0 where it reads no such patches."""
    side = isqrt(shape[1] // 3) if len(shape) == 2 else 0
    return side if len(shape) == 2 and 3 * side * side == shape[1] else 0


def _unpacked(
    tensor: StoredTensor, block: str, kind: str, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Return queries, keys and values of a packed projection: neighbouring rows, hence neighbouring bytes."""
    out = tensors.get(f"{block}.out.weight")
    rows, queries = tensor.shape[0], out.shape[1] if out and len(out.shape) == 2 else tensor.shape[0] // 3
    counts = (queries, (rows - queries) // 2, (rows - queries) // 2)
    width = ITEM_BYTES[tensor.dtype]
    for side in tensor.shape[1:]:
        width *= side
    parts, start = {}, tensor.start
    for letter, count in zip(_LETTERS, counts, strict=True):
        name, stop = f"{block}.to_{letter}.{kind}", start + count * width
        shape = (count, *tensor.shape[1:])
        parts[name] = replace(tensor, name=name, shape=shape, start=start, stop=stop)
        start = stop
    return parts


def comfyui_names(plan: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """Return what is planned by the published names, by ComfyUI's instead."""
    by_name = {tensor.name: tensor for tensor in plan}
    made = []
    for tensor in plan:
        part = re.fullmatch(r"(.+\.attention)\.to_([qkv])\.(weight|bias)", tensor.name)
        if part and part[2] == "q":
            made.append(_packed([by_name[f"{part[1]}.to_{letter}.{part[3]}"] for letter in _LETTERS]))
        if part:
            continue
        name = re.sub(r"^all_x_embedder\.\d+-1\.", "x_embedder.", tensor.name)
        for theirs, ours in _RENAMED.items():
            name = name.replace(ours, theirs)
        made.append(replace(tensor, name=PREFIX + name))
    return made


def _packed(parts: Sequence[PlannedTensor]) -> PlannedTensor:
    def make() -> Tensor:
        import torch

        origins = [part.origin for part in parts]
        return torch.cat([each.read() if isinstance(each, StoredTensor) else each() for each in origins])

    name = PREFIX + parts[0].name.replace(".to_q.", ".qkv.")
    rows = sum(part.shape[0] for part in parts)
    return PlannedTensor(name=name, dtype=parts[0].dtype, shape=(rows, *parts[0].shape[1:]), origin=make)

"""Trained-delta files: only what training changed, tied by a hash to the base that it changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_arch.arguments import check_flags, check_paths
from l2p_arch.errors import ArchError
from l2p_arch.files.components import (
    components_to_keep,
    copy_components,
    copy_file,
    name_of,
    read_model_config,
    recipe_of,
)
from l2p_arch.files.directories import appearing_complete, appearing_file
from l2p_arch.files.model_card import write_model_card
from l2p_arch.files.recognition import identify
from l2p_arch.files.tensor_files import StoredTensor, dtype_name, index_directory, read_header
from l2p_arch.files.tensor_writing import PlannedTensor, write_directory, write_file
from l2p_arch.source_formats import source_format

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 8 << 20
_KIND = "l2p-trained-delta"


def weights_hash(model: Path | str) -> str:
    """Return sha256 over names, dtypes, shapes and bytes of a model's transformer, independent of how it is
    sharded."""
    check_paths(model=model)
    return _hash(index_directory(Path(model) / "transformer").values())


def save_delta(
    trained: Mapping[str, Tensor], base: Path | str, out: Path | str, *, overwrite: bool = False
) -> None:
    """Write a trained-delta file.

    Args:
        trained: tensors by their names in the `L2PTransformer`, with new values.
        base: model directory that training started from; its hash goes into the file.
        out: safetensors file to create; it appears complete or not at all.
        overwrite: replace an existing file.
    """
    check_paths(base=base, out=out)
    check_flags(overwrite=overwrite)
    if not isinstance(trained, Mapping):
        raise ArchError(f"trained is a {type(trained).__name__}; wanted tensors by their names")
    base = Path(base)
    config, stored = read_model_config(base), index_directory(base / "transformer")
    if not trained:
        raise ArchError("a delta of no tensors was asked for; pass the trained ones")
    for name, value in trained.items():
        if name not in stored:
            raise ArchError(f"{name} is not a tensor of {base}; pass names of its L2PTransformer")
        if tuple(value.shape) != stored[name].shape:
            raise ArchError(
                f"{name} has the shape {tuple(value.shape)}, in {base} it is {stored[name].shape}"
            )
        if value.is_meta or not value.is_floating_point():
            raise ArchError(
                f"{name} is {value.dtype} on {value.device}; pass trained values, which are floats"
            )
    metadata = {
        "kind": _KIND,
        "base_sha256": _hash(stored.values()),
        "base_config_sha256": _config_hash(config),
        "recipe": recipe_of(config),
    }
    with appearing_file(Path(out), [base], overwrite) as partial:
        write_file(partial, [_in_memory(name, value) for name, value in trained.items()], metadata)


def merge_delta(base: Path | str, delta: Path | str, out: Path | str, *, overwrite: bool = False) -> None:
    """Write a complete model directory: the base with the delta's tensors in place of its own."""
    check_paths(base=base, delta=delta, out=out)
    check_flags(overwrite=overwrite)
    base, delta, out = Path(base), Path(delta), Path(out)
    changed, metadata = read_header(delta)
    if metadata.get("kind") != _KIND:
        raise ArchError(f"{delta} is no trained-delta file: {identify(delta)}")
    config, stored = read_model_config(base), index_directory(base / "transformer")
    recipe = metadata.get("recipe", "paper")
    if recipe != recipe_of(config):
        raise ArchError(
            f"{delta} was trained from a model of the {recipe} recipe, and {base} is one of the "
            f"{recipe_of(config)} recipe; give the base that it was trained from"
        )
    if _hash(stored.values()) != metadata.get("base_sha256"):
        raise ArchError(
            f"{delta} was trained from another base than {base}: the hashes of the weights differ"
        )
    if _config_hash(config) != metadata.get("base_config_sha256", _config_hash(config)):
        raise ArchError(
            f"{delta} was trained from a base with another config than {base}'s transformer/config.json; "
            "restore it"
        )
    for name, tensor in changed.items():
        if name not in stored or stored[name].shape != tensor.shape:
            there = stored[name].shape if name in stored else "no such tensor"
            raise ArchError(f"{delta} holds {name} {tensor.shape}, and {base} {there}; it is damaged")
    components = components_to_keep(base, source_format(config["family"]).text_components, config["family"])
    plan = []
    for name, tensor in stored.items():
        origin = changed.get(name, tensor)
        plan.append(PlannedTensor(name=name, dtype=origin.dtype, shape=origin.shape, origin=origin))
    with appearing_complete(out, [base, delta], overwrite) as partial:
        (partial / "transformer").mkdir()
        write_directory(partial / "transformer", plan)
        copy_file(base / "transformer" / "config.json", partial / "transformer" / "config.json")
        copy_components(base, components, partial)
        history = f"{name_of(base)}, with {len(changed)} trained tensors of {delta.name} merged into it"
        write_model_card(partial, history, title=name_of(out))


def _in_memory(name: str, value: Tensor) -> PlannedTensor:
    return PlannedTensor(
        name=name, dtype=dtype_name(value.dtype), shape=tuple(value.shape), origin=lambda: value
    )


def _config_hash(config: Mapping[str, Any]) -> str:
    """Return sha256 over what a config says of the model; what libraries note beside it, such as their
    version, does not count."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def _hash(tensors: Iterable[StoredTensor]) -> str:
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape} ".encode())
        with tensor.path.open("rb") as file:
            file.seek(tensor.start)
            left = tensor.stop - tensor.start
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise ArchError(f"{tensor.path} ended within {tensor.name}; fetch or write it again")
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()

"""Files that are not what they say are refused, never read as something else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, identify
from l2p_arch.files.tensor_files import index_directory, read_header
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

SHARD = "diffusion_pytorch_model-0000{}-of-00002.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def entry(start: object, stop: object, *shape: object, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def write(path: Path, header: str, data: bytes = bytes(16)) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 12, 3), "b": entry(8, 16, 2)},  # they overlap
        {"a": entry(0, 4, 1), "b": entry(8, 16, 2)},  # a hole between them
        {"a": entry(4, 16, 3)},  # and before the first
        {"a": entry(-4, 16, 5)},
        {"a": entry(0, 16, -2, -2)},
        {"a": entry(0.0, 16.0, 4)},
        {"a": entry(True, 17, 4)},
        {"a": entry(0, 16, 5)},
        {"a": entry(0, 16)},
        {"a": [0, 16]},
        {"a": entry(0, 16, 4), "__metadata__": ["x"]},
    ],
    ids=str,
)
def test_a_header_that_safetensors_refuses_is_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    path = write(tmp_path / "file.safetensors", json.dumps(header))
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(ArchError) as raised:
        read_header(path)
    assert "\n" not in str(raised.value)
    assert identify(path)


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=["a name twice", "deep"],
)
def test_a_header_of_another_kind_is_named(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "file.safetensors", header)
    with pytest.raises(ArchError, match="its header cannot be read"):
        read_header(path)


def test_a_header_without_metadata_is_usual(tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", json.dumps({"a": entry(0, 16, 4), "__metadata__": None}))
    tensors, metadata = read_header(path)
    assert torch.equal(tensors["a"].read(), torch.zeros(4))
    assert metadata == {}


def shards(directory: Path) -> dict[str, str]:
    """Two shards of a tensor each, and what their index should say."""
    for number, name in ((1, "a"), (2, "b")):
        save_file({name: torch.full((2,), float(number))}, directory / SHARD.format(number))
    return {"a": SHARD.format(1), "b": SHARD.format(2)}


def test_a_tensor_that_the_index_forgot_is_there_all_the_same(tmp_path: Path) -> None:
    weight_map = shards(tmp_path)
    save_file({"b": torch.ones(2), "surprise": torch.ones(1)}, tmp_path / SHARD.format(2))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert index_directory(tmp_path).keys() == {"a", "b", "surprise"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda weights: {**weights, "c": "../outside.safetensors"}, "is not a file beside it"),
        (lambda weights: {**weights, "c": "gone.safetensors"}, "lacks gone.safetensors"),
        (lambda weights: {**weights, "c": weights["a"]}, "the index names c, which"),
        (lambda weights: {**weights, "c": 5}, "it holds no weight_map"),
        (list, "it holds no weight_map"),
    ],
)
def test_an_index_that_is_wrong_is_named(
    tmp_path: Path, change: Callable[[dict[str, str]], object], complaint: str
) -> None:
    directory = tmp_path / "transformer"
    directory.mkdir()
    save_file({"c": torch.ones(1)}, tmp_path / "outside.safetensors")
    weight_map = shards(directory)
    (directory / INDEX).write_text(json.dumps({"weight_map": change(weight_map)}))
    with pytest.raises(ArchError, match=complaint):
        index_directory(directory)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    weight_map = shards(tmp_path)
    save_file({"b": torch.ones(2), "a": torch.ones(2)}, tmp_path / SHARD.format(2))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ArchError, match="holds a in two shards"):
        index_directory(tmp_path)

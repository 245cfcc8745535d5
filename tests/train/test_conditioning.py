"""The cache of text embeddings."""

import os
from pathlib import Path

import pytest
import torch
from l2p_train import TrainError
from l2p_train.data.conditioning import (
    ConditioningCache,
    encode_missing,
    encoder_hash,
    prompt_key,
    write_embeddings,
)

PARTS = ("text_encoder", "tokenizer")


def test_cached_embeddings_equal_the_pipelines_own_and_are_made_once(tiny_model: Path, tmp_path: Path):
    from l2p_arch import L2PPipeline

    prompts = ["", "a red circle on a gray background", "a blue square"]
    cache = ConditioningCache(tmp_path)
    assert cache.missing(prompts * 2) == sorted(prompts)
    assert list(encode_missing(tiny_model, cache.missing(prompts), tmp_path, max_sequence_length=64)) == [3]
    cache.refresh()
    assert cache.missing(prompts) == [] == ConditioningCache(tmp_path).missing(prompts)
    pipeline = L2PPipeline.from_pretrained(tiny_model, transformer=None, local_files_only=True)
    family = pipeline_family()
    for prompt in prompts:
        components = {name: getattr(pipeline, name) for name in family.text_components}
        with torch.no_grad():
            (direct,) = family.encode_text(
                components, [prompt], device=torch.device("cpu"), max_sequence_length=64
            )
        for name, tensor in direct.items():
            torch.testing.assert_close(cache[prompt][name], tensor)


def pipeline_family():
    from l2p_arch import FAMILIES

    return FAMILIES["z-image"]


def test_the_folder_changes_with_the_encoder_and_the_length(tiny_model: Path, tmp_path: Path):
    import shutil

    first = encoder_hash(tiny_model, PARTS, 512)
    assert first == encoder_hash(tiny_model, PARTS, 512) != encoder_hash(tiny_model, PARTS, 256)
    for part in PARTS:
        shutil.copytree(tiny_model / part, tmp_path / part)
    assert encoder_hash(tmp_path, PARTS, 512) == first
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    assert encoder_hash(tmp_path, PARTS, 512) != first


def test_every_byte_of_an_encoder_counts_however_large_it_is(tmp_path: Path):
    """What is neither at the ends of a file nor in any sample of it, and with its time set back."""
    path = tmp_path / "text_encoder" / "model.safetensors"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(90 << 20)  # a file of holes takes no space
    first = encoder_hash(tmp_path, ["text_encoder"], 512)
    times = path.stat()
    with path.open("r+b") as file:
        file.seek((3 << 20) + 17)
        file.write(b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert encoder_hash(tmp_path, ["text_encoder"], 512) != first


def test_entries_are_found_by_prompt_in_any_file(tmp_path: Path):
    write_embeddings(tmp_path, {"one": {"caption": torch.ones(2, 3), "pooled": torch.zeros(3)}})
    write_embeddings(tmp_path, {"two": {"caption": torch.full((4, 3), 2.0), "pooled": torch.ones(3)}})
    cache = ConditioningCache(tmp_path)
    assert cache["two"]["caption"].shape == (4, 3) and float(cache["one"]["caption"].sum()) == 6
    assert "three" not in cache and prompt_key("one") != prompt_key("two")
    with pytest.raises(KeyError, match="three"):
        cache["three"]


def test_a_damaged_file_is_named(tmp_path: Path):
    path = write_embeddings(tmp_path, {"one": {"caption": torch.ones(2, 3)}})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TrainError, match="corrupt text embeddings"):
        ConditioningCache(tmp_path)

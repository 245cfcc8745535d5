"""Sources of random weights: the published sizes, the real layout, and surgery and sampling on them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, convert
from l2p_arch.families.published_pipelines import recipe
from l2p_arch.files.tensor_files import index_directory
from l2p_arch.surgery import random_source
from l2p_arch.surgery.random_source import build_on_meta, write_random_source


@pytest.mark.parametrize(
    ("family", "part", "parameters"),
    [
        ("z-image", "transformer", 6_154_908_736),
        ("z-image", "text_encoder", 4_022_468_096),
        ("z-image", "vae", 83_819_683),
        ("flux", "transformer", 11_901_408_320),
        ("flux", "text_encoder", 123_060_480),
        ("flux", "text_encoder_2", 4_762_310_656),
        ("sd3", "text_encoder_2", 694_659_840),
    ],
)
def test_parts_have_the_published_numbers_of_parameters(family: str, part: str, parameters: int) -> None:
    built = build_on_meta(recipe(family).components[part])
    assert sum(value.numel() for value in built.parameters()) == parameters


def test_a_source_like_another_has_its_tensors_and_other_values(
    untrained_source: Path, tmp_path: Path
) -> None:
    written = write_random_source(tmp_path / "source", "z-image", like=untrained_source, shard_bytes=1 << 20)
    for part in ("transformer", "vae"):
        known, made = index_directory(untrained_source / part), index_directory(tmp_path / "source" / part)
        assert {name: (one.shape, one.dtype) for name, one in known.items()} == {
            name: (one.shape, one.dtype if one.dtype != "BF16" else "F32") for name, one in made.items()
        }
    assert len(list((tmp_path / "source" / "transformer").glob("*-of-*.safetensors"))) > 1
    assert written == sum(path.stat().st_size for path in (tmp_path / "source").rglob("*.safetensors")) - sum(
        _header(path) for path in (tmp_path / "source").rglob("*.safetensors")
    )


def _header(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_it_paints_and_converts(untrained_source: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    source = tmp_path / "source"
    write_random_source(source, "z-image", like=untrained_source, depth=2)
    assert json.loads((source / "transformer" / "config.json").read_text())["n_layers"] == 2
    pipeline = DiffusionPipeline.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image: Any = pipeline("a red circle", height=32, width=32, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 32, 32, 3) and image.std() > 0
    report = convert(source, tmp_path / "model", head_channels=(4, 8, 8, 8))
    assert report.family == "z-image"


def test_writing_goes_on_where_it_was_stopped(
    untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, written = tmp_path / "source", random_source.write_directory
    done: list[str] = []

    def stop_at_the_second(folder: Path, *arguments: Any, **options: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(folder.name)
        written(folder, *arguments, **options)

    monkeypatch.setattr(random_source, "write_directory", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_random_source(source, "z-image", like=untrained_source)
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in (source / done[0]).glob("*.safetensors")}
    assert before
    write_random_source(source, "z-image", like=untrained_source)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    convert(source, tmp_path / "model", head_channels=(4, 8, 8, 8))


def test_a_family_of_unknown_size_wants_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ArchError, match="the full size of prx is not known here"):
        write_random_source(tmp_path / "source", "prx")
    with pytest.raises(ArchError):
        write_random_source(tmp_path / "source", "no-family")


def test_the_published_layout_at_depth_one_is_read_by_its_own_pipeline_class(tmp_path: Path) -> None:
    """On meta tensors where it is large: names and classes alone."""
    found = recipe("z-image")
    module = random_source.build_on_meta(found.components["transformer"], depth=1)
    assert len(module.layers) == 1 and len(module.noise_refiner) == 2
    text = random_source.build_on_meta(found.components["text_encoder"], depth=1)
    assert len(text.layers) == random_source.LEAST_TEXT_DEPTH
    tokenizer = random_source.byte_tokenizer(512)
    message = [{"role": "user", "content": "a cat"}]
    assert "a cat" in tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids = tokenizer("x" * 2000, truncation=True, max_length=512).input_ids
    assert len(ids) == 512 and max(ids) < text.config.vocab_size

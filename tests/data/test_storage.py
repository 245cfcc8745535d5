"""The corpus on other filesystems, and through Hugging Face datasets."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from l2p_data import DataError, SynthesisConfig, commands, prompt_records, read_corpus, synthesize, verify
from l2p_data.corpus.dataset import iterate_corpus, write_corpus
from l2p_data.corpus.files import location, write_bytes
from l2p_data.corpus.folders import export_folder, import_folder
from l2p_data.corpus.images import encode_image
from PIL import Image

PIPELINE = {"num_inference_steps": 1, "guidance_scale": 0.0, "max_sequence_length": 32}


def rows(count: int) -> list[dict[str, object]]:
    made = []
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = {"bytes": encode_image(Image.fromarray(pixels)), "path": f"{index}.png"}
        text = {name: f"{name} 圆 {index}" for name in ("prompt", "category", "subclass", "superclass")}
        made.append(
            {"id": f"i{index}", "language": "en", "seed": index, "width": 8, "height": 8, "image": image}
            | text
            | {"source_model": "m", "created_by": "test"}
        )
    return made


@pytest.fixture
def memory() -> str:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return "memory://bucket"


def test_synthesis_into_an_object_store_gives_the_bytes_of_a_local_one_and_resumes(
    memory: str, untrained_source: Path, tmp_path: Path
) -> None:
    def config(output: str | Path) -> SynthesisConfig:
        return SynthesisConfig(
            model=untrained_source,
            output=output,
            width=64,
            height=64,
            rows_per_shard=2,
            seeds_per_prompt=1,
            workers=0,
            pipeline_kwargs=PIPELINE,
        )

    prompts = prompt_records(["a red circle", "a blue square", "a green star"])
    synthesize(prompts, config(tmp_path / "local"))
    synthesize(prompts, config(f"{memory}/corpus"))
    stored = location(f"{memory}/corpus")
    lost = stored / "part-00001.parquet"
    lost.unlink()
    (stored / "_manifest.json").unlink()
    with pytest.raises(DataError, match="the corpus is unfinished"):
        read_corpus(f"{memory}/corpus")
    synthesize(prompts, config(f"{memory}/corpus"))
    local = {path.name: path.read_bytes() for path in (tmp_path / "local").glob("*.*") if path.is_file()}
    there = {path.name: path.read_bytes() for path in stored.glob("*.*") if path.is_file()}
    assert there == local and len(local) == 3
    assert verify(f"{memory}/corpus", decode=True)["rows"] == 3


def test_folders_go_to_and_come_from_an_object_store(memory: str, tmp_path: Path) -> None:
    write_corpus(f"{memory}/corpus", rows(5), settings={}, rows_per_shard=2)
    for layout in ("hub", "pairs", "sidecar"):
        assert export_folder(f"{memory}/corpus", f"{memory}/{layout}", layout=layout) == 5
        manifest = import_folder(f"{memory}/{layout}", tmp_path / layout)
        assert manifest.rows == 5 and not manifest.failures
        before, after = read_corpus(f"{memory}/corpus"), read_corpus(tmp_path / layout)
        assert sorted(after["prompt"]) == sorted(before["prompt"])
        images = [frame["image"].struct.field("bytes").to_list() for frame in (before, after)]
        assert sorted(images[0]) == sorted(images[1])
    with pytest.raises(DataError, match="is not empty"):
        export_folder(f"{memory}/corpus", f"{memory}/hub")


def test_a_file_address_is_a_local_path_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    write_bytes(location(f"file://{tmp_path}/a/x.bin"), b"here")
    assert (tmp_path / "a" / "x.bin").read_bytes() == b"here"
    with pytest.raises(DataError, match="cannot use nonsense://bucket"):
        location("nonsense://bucket")
    with pytest.raises(DataError, match=r"gcsfs.*install l2p-data\[gs\]"):
        location("gs://bucket/corpus")


def test_hugging_face_datasets_shows_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()
    write_corpus(tmp_path / "corpus", rows(5), settings={}, rows_per_shard=2)
    files = [str(path) for path in sorted((tmp_path / "corpus").glob("*.parquet"))]
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    for row, stored in zip(loaded, iterate_corpus(tmp_path / "corpus"), strict=True):
        assert row["prompt"] == stored["prompt"] and row["image"].size == (8, 8)
        picture = Image.open(io.BytesIO(stored["image"]["bytes"]))
        assert np.array_equal(np.asarray(row["image"]), np.asarray(picture))


def test_four_k_folders_come_in_with_either_caption(tmp_path: Path) -> None:
    folder = tmp_path / "ultra"
    for index in range(3):
        path = folder / f"images/{index % 2}/{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(Image.new("RGB", (64, 48), (index, 9, 9))))
    table = {
        "file_name": [f"{index:05d}" for index in range(4)],  # no folder, no suffix; the last is missing
        "short_caption": [f"short {index}" for index in range(4)],
        "long_caption": [f"long {index}" for index in range(4)],
    }
    pl.DataFrame(table).write_parquet(folder / "captions.parquet")
    plan = commands.import_(folder, tmp_path / "long", dry_run=True)
    assert plan["rows"] == 4 and plan["text_column"] == "long_caption" and not (tmp_path / "long").exists()
    assert commands.import_(folder, tmp_path / "long")["failures"] == ["00003: missing: '00003' is missing"]
    commands.import_(folder, tmp_path / "short", caption="short_caption")
    assert read_corpus(tmp_path / "long")["prompt"].to_list() == ["long 0", "long 1", "long 2"]
    assert read_corpus(tmp_path / "short")["prompt"].to_list() == ["short 0", "short 1", "short 2"]
    assert read_corpus(tmp_path / "short").select("width", "height").unique().row(0) == (64, 48)
    (folder / "captions.parquet").unlink()
    (folder / "list.json").write_text('[{"name": "00001.png", "prompt": "by name"}]')
    commands.import_(folder, tmp_path / "named")
    assert read_corpus(tmp_path / "named")["prompt"].to_list() == ["by name"]


def test_shards_of_large_images_are_cut_by_their_bytes(tmp_path: Path) -> None:
    size = len(rows(1)[0]["image"]["bytes"])  # type: ignore[index]
    manifest = write_corpus(tmp_path / "c", rows(5), settings={}, bytes_per_shard=2 * size)
    assert [shard.rows for shard in manifest.shards] == [2, 2, 1]

"""Sizes through the whole command: what the source paints, what is trained, what is evaluated and sampled."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl
import pytest
from l2p_run.sizes import Size
from l2p_transfer.cli import main
from l2p_transfer.config import load_config
from l2p_transfer.sizes import evaluated_size, painted_sizes, source_size, trained_sizes
from PIL import Image

BUCKETS = (
    'images.buckets=["64x64", "96x48"]',
    "evaluate.width=80",
    "evaluate.height=48",
    "train.steps=6",
)
RESOLUTION = (
    "surgery.patch_size=32",
    "surgery.head_channels=[8, 8, 8, 16, 16]",
    'surgery.initialisation="fitted"',  # it measures the source with corpus images, as they are trained
    "train.resolution=128",
)


@pytest.fixture
def folder(tmp_path: Path, write_tiny_run: Callable[..., None]) -> Iterator[Path]:
    """A working directory with the config and two evaluation prompts."""
    write_tiny_run(tmp_path, prompts={"count": 6}, train={"steps": 3, "zero_stage": 0, "sample_every": 3})
    with contextlib.chdir(tmp_path):
        yield tmp_path


def sets(overrides: Sequence[str]) -> list[str]:
    return [argument for override in overrides for argument in ("--set", override)]


def painted(folder: Path, model: str) -> set[tuple[int, int]]:
    """Sizes of a model's evaluation images."""
    return {Image.open(path).size for path in (folder / "run/evaluation" / model).rglob("*.png")}


def default_size(folder: Path) -> tuple[int, int]:
    """What l2p-generate paints when it is told nothing."""
    sampling = json.loads((folder / "run/model/sampling.json").read_text())
    return sampling["width"], sampling["height"]


def test_a_run_with_buckets_trains_all_shapes_and_evaluates_at_the_stated_one(folder: Path) -> None:
    from l2p_train.config import config_from_mapping
    from l2p_train.data.batches import BatchPlan
    from l2p_train.data.corpus import Corpus

    assert main(["tiny.toml", *sets(BUCKETS)]) == 0
    corpus = pl.read_parquet(folder / "run/corpus/*.parquet", columns=["width", "height"])
    assert set(corpus.iter_rows()) == {(64, 64), (96, 48)}
    train = config_from_mapping(json.loads((folder / "run/train/train.json").read_text()))
    plan = BatchPlan([row.size for row in Corpus(train.corpus).rows], train.batch_size, train.seed)
    assert {plan.rows(step)[0] for step in range(train.steps)} == {Size(64, 64), Size(width=96, height=48)}
    assert painted(folder, "l2p") == painted(folder, "source") == {default_size(folder)} == {(80, 48)}
    report = (folder / "run/report.md").read_text()
    assert "64x64, 96x48 px" in report


def test_a_run_with_a_resolution_is_trained_evaluated_and_sampled_at_it(folder: Path) -> None:
    assert main(["tiny.toml", *sets(RESOLUTION)]) == 0
    corpus = pl.read_parquet(folder / "run/corpus/*.parquet", columns=["width", "height"])
    assert set(corpus.iter_rows()) == {(64, 64)}
    grid = Image.open(next((folder / "run/train/samples").glob("step-*.png")))
    assert grid.size == (2 * 128 + 2, 2 * 128 + 2)  # source and ours, two prompts
    assert painted(folder, "l2p") == {default_size(folder)} == {(128, 128)}
    assert painted(folder, "source") == {(64, 64)}, "the source paints at the size it was made for"
    assert "64x64 px, resized to 128x128 px" in (folder / "run/report.md").read_text()

    stated = sets([*RESOLUTION, "evaluate.width=96", "evaluate.height=64"])
    assert main(["tiny.toml", *stated, "--update"]) == 0
    assert painted(folder, "l2p") == {default_size(folder)} == {(96, 64)}


def test_a_dry_run_counts_what_is_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = []
    for overrides in ((), RESOLUTION, (*RESOLUTION, "train.resolution=256"), BUCKETS):
        assert main(["tiny.toml", "--dry-run", "--json", *sets(overrides)]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert [plan["model"]["tokens"] for plan in plans] == [16, 16, 64, 18]
    memory = [plan["model"]["memory_gb"] for plan in plans]
    assert memory[1] < memory[2]
    work = [{stage["title"]: stage["work"] for stage in plan["stages"]} for plan in plans]
    assert work[1]["Images from the source"] == "6 images of 64x64 px"
    assert work[1]["Training"] == "3 steps of 2 images, resized to 128x128 px"
    assert work[1]["Evaluation"] == "1 image a prompt, 128x128 px; of the source 64x64 px"
    assert work[3]["Images from the source"] == "6 images of 64x64, 96x48 px"
    assert work[3]["Evaluation"] == "1 image a prompt, 80x48 px"


def test_each_bucket_keeps_its_shape_where_the_training_resizes(folder: Path) -> None:
    overrides = [*BUCKETS, "train.resolution=128", "evaluate.width=192", "evaluate.height=96"]
    config = load_config(Path("tiny.toml"), overrides)
    assert painted_sizes(config) == ((64, 64), (96, 48))
    assert trained_sizes(config) == ((128, 128), (176, 96))  # nearest multiples of 16: 181 x 90.5
    assert evaluated_size(config) == (192, 96)
    assert source_size(config) == (96, 48), "the painted size of the nearest shape"

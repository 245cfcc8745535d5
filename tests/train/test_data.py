"""Batches as functions of the step."""

import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_run.sizes import Size
from l2p_train import TrainConfig, TrainError
from l2p_train.data.batches import BatchMaker, BatchPlan, prefetched
from l2p_train.data.corpus import Corpus, bucket_size
from l2p_train.data.shards import first_size

Sizes = st.lists(st.sampled_from([(32, 32), (32, 64), (64, 32)]), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(Sizes, st.integers(1, 12), st.integers(0, 3))
def test_every_batch_is_of_one_size_and_rows_are_seen_equally_often(sizes, batch_size, seed):
    plan = BatchPlan(sizes, batch_size, seed)
    seen: Counter[int] = Counter()
    for step in range(60):
        size, rows = plan.rows(step)
        assert len(rows) == batch_size
        assert {sizes[row] for row in rows} == {size}
        seen.update(rows)
    for size in set(sizes):
        counts = [seen[row] for row in range(len(sizes)) if sizes[row] == size]
        assert max(counts) - min(counts) <= 1


@settings(max_examples=20, deadline=None)
@given(Sizes, st.integers(1, 12), st.permutations(list(range(20))))
def test_the_batch_of_a_step_does_not_depend_on_the_steps_before(sizes, batch_size, order):
    straight = BatchPlan(sizes, batch_size, 0)
    wanted = [straight.rows(step) for step in range(20)]
    shuffled = BatchPlan(sizes, batch_size, 0)
    assert {step: shuffled.rows(step) for step in order} == dict(enumerate(wanted))


def test_buckets_come_in_proportion_to_their_rows():
    sizes = [(32, 32)] * 30 + [(64, 32)] * 10
    plan = BatchPlan(sizes, 4, 0)
    counts = Counter(plan.rows(step)[0] for step in range(100))
    assert counts[(32, 32)] == 75


def test_epochs_and_seeds_have_different_orders():
    plan = BatchPlan([(32, 32)] * 16, 16, 0)
    orders = {tuple(plan.rows(step)[1]) for step in range(5)}
    orders.add(tuple(BatchPlan([(32, 32)] * 16, 16, 1).rows(0)[1]))
    assert len(orders) == 6
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert [plan.epoch_of(step) for step in range(3)] == [0, 1, 2]


@settings(deadline=None)
@given(st.integers(200, 3000), st.integers(200, 3000))
def test_a_bucket_keeps_area_and_aspect(height, width):
    wide, tall = bucket_size(Size(width=width, height=height), 1024, 16)
    assert tall % 16 == wide % 16 == 0
    aspect = height / width
    if 0.25 <= aspect <= 4:
        assert abs(tall * wide / 1024**2 - 1) < 0.03
        assert abs((tall / wide) / aspect - 1) < 0.04


def test_an_image_that_the_patch_does_not_divide_is_refused_with_the_remedy():
    with pytest.raises(
        TrainError, match="100 x 64 px, not multiples of the patch size 16; set resolution = 80"
    ):
        bucket_size(Size(width=100, height=64), None, 16)
    assert bucket_size(Size(width=96, height=64), None, 16) == Size(width=96, height=64)


def test_the_order_of_batches_does_not_depend_on_how_a_size_is_written():
    """A run of an earlier version knew sizes as (height, width), and goes on with the same batches."""
    sizes = [Size(width=64, height=32), Size(width=32, height=64), Size(width=48, height=48)] * 5
    plan = BatchPlan(sizes, 2, 7)
    assert [size for size, _ in plan.buckets] == [(64, 32), (48, 48), (32, 64)]  # lower ones first
    assert [plan.rows(step)[1] for step in range(4)] == [[13, 10], [14, 5], [7, 1], [12, 6]]


class NoText(dict):
    """Conditioning that names its prompt by its length."""

    def __missing__(self, prompt):
        return {"caption": torch.full((2, 4), float(len(prompt)))}


def maker(corpus: Path, rank: int = 0, world_size: int = 1, **changes) -> BatchMaker:
    values = {"batch_size": 4, "seed": 5} | changes
    config = TrainConfig(model=Path("m"), corpus=corpus, output=Path("o"), **values)
    return BatchMaker(config, Corpus(corpus), NoText(), patch_size=16, rank=rank, world_size=world_size)


def test_processes_and_micro_batches_share_out_the_same_batch(tiny_corpus: Path):
    whole = maker(tiny_corpus).batches(3)[0]
    parts = [
        batch
        for rank in range(2)
        for batch in maker(tiny_corpus, rank=rank, world_size=2, micro_batch_size=1).batches(3)
    ]
    assert [batch.counters for batch in parts] == [[12], [13], [14], [15]]
    for name in ("x_0", "noise", "sigma"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert [part.ids[0] for part in parts] == whole.ids


def test_batches_hold_the_images_of_the_corpus(tiny_corpus: Path):
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    rows = {
        row["id"]: row for path in tiny_corpus.glob("*.parquet") for row in pq.read_table(path).to_pylist()
    }
    batch = maker(tiny_corpus).batches(0)[0]
    assert batch.x_0.shape == (4, 3, 32, 32) and batch.x_0.dtype == torch.float32
    for id_, x_0 in zip(batch.ids, batch.x_0, strict=True):
        stored = np.asarray(Image.open(io.BytesIO(rows[id_]["image"]["bytes"])))
        assert torch.equal(
            ((x_0 + 1) * 127.5).round().byte().permute(1, 2, 0), torch.from_numpy(stored.copy())
        )
    lengths = [float(conditioning["caption"][0, 0]) for conditioning in batch.conditioning]
    assert lengths == [len(rows[id_]["prompt"]) for id_ in batch.ids]


def test_the_loader_yields_every_step_in_order_whatever_its_threads(tiny_corpus: Path):
    wanted = [(step, batches[0].ids) for step, batches in prefetched(maker(tiny_corpus), range(2, 9), 0)]
    assert [step for step, _ in wanted] == list(range(2, 9))
    for workers in (1, 3):
        found = [
            (step, batches[0].ids) for step, batches in prefetched(maker(tiny_corpus), range(2, 9), workers)
        ]
        assert found == wanted


def test_mixed_sizes_train_in_buckets_without_a_crop(tmp_path: Path, write_shard):
    write_shard(tmp_path / "part-00000.parquet", [(40, 80)] * 3 + [(64, 64)] * 3)
    made = maker(tmp_path, resolution=64, batch_size=2)
    shapes = {tuple(made.batches(step)[0].x_0.shape[2:]) for step in range(8)}
    assert shapes == {(48, 96), (64, 64)}


def test_a_corpus_that_cannot_be_read_is_named(tmp_path: Path, write_shard):
    with pytest.raises(TrainError, match="no corpus in"):
        Corpus(tmp_path)
    write_shard(tmp_path / "part-00000.parquet", [(32, 32)])
    content = (tmp_path / "part-00000.parquet").read_bytes()
    (tmp_path / "part-00001.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(TrainError, match=r"corrupt corpus shard .*part-00001"):
        Corpus(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"prompt": None}, "has prompt None, wanted text"),
        ({"width": None}, "has width None, wanted a whole number of px"),
        ({"height": 0}, "has height 0, wanted a whole number of px from 1"),
        ({"prompt": 5}, "has prompt 5, wanted text"),
        ({"width": "32"}, "has width '32', wanted a whole number of px"),
        ({"image": b"PNG"}, "column image is binary, wanted a struct"),
        ({"image": {"path": "a.png"}}, "column image is struct<path: string>, wanted a struct"),
    ],
)
def test_rows_of_another_origin_are_named(change: dict, words: str, tmp_path: Path, write_shard):
    path = tmp_path / "part-00000.parquet"
    write_shard(path, [(32, 32), (32, 32)])
    rows = pq.read_table(path).to_pylist()
    kept = rows[:1] if None in change.values() or 0 in change.values() else []
    changed = rows[1:] if kept else rows
    pq.write_table(pa.Table.from_pylist([*kept, *({**row, **change} for row in changed)]), path)
    with pytest.raises(TrainError, match=re.escape(words)):
        Corpus(tmp_path)


def test_a_shard_without_rows_has_no_first_size(tmp_path: Path, write_shard):
    path = tmp_path / "part-00000.parquet"
    write_shard(path, [(32, 32)])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(TrainError, match="has no rows; leave the file out"):
        first_size(tmp_path)


def test_the_digest_of_a_corpus_is_of_its_rows_and_not_of_its_place(tmp_path: Path, write_shard):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "part-00000.parquet", [(32, 32), (32, 64)])
    assert Corpus(tmp_path / "one").digest == Corpus(tmp_path / "two").digest
    write_shard(tmp_path / "two" / "part-00000.parquet", [(32, 64), (32, 32)])
    assert Corpus(tmp_path / "one").digest != Corpus(tmp_path / "two").digest


def test_columns_of_other_arrow_types_read_alike(tmp_path: Path, write_shard):
    path = tmp_path / "part-00000.parquet"
    write_shard(path, [(32, 32), (32, 64)])
    before, table = Corpus(tmp_path).digest, pq.read_table(path)
    at = table.schema.get_field_index("prompt")
    table = table.set_column(at, "prompt", table.column("prompt").dictionary_encode())
    at = table.schema.get_field_index("width")
    pq.write_table(table.set_column(at, "width", table.column("width").cast(pa.uint16())), path)
    assert Corpus(tmp_path).digest == before

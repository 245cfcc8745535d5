"""A corpus, and a run, in an object store: the S3 protocol over HTTP, spoken to a server on loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from l2p_train import TrainConfig, TrainError, launch, train
from l2p_train.data.corpus import Corpus
from l2p_train.data.shards import RemoteShards
from l2p_train.data.storage import Store
from l2p_train.machine.processes import free_port
from l2p_train.run.mirror import Mirror
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def stored(bucket: str, tiny_corpus: Path) -> str:
    """The corpus of the other tests, in the bucket."""
    Store(f"{bucket}/corpus").push(tiny_corpus)
    return f"{bucket}/corpus"


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """The function (corpus, name of the run, changes) -> TrainConfig."""

    def make(corpus: Path | str, name: str, **changes) -> TrainConfig:
        values = {
            "steps": 2,
            "batch_size": 4,
            "trainable": 1,
            "learning_rate": 1e-3,
            "log_every": 1,
            "sample_every": 0,
            "tensorboard": False,
            "precision": "fp32",
            "zero_stage": 0,
        }
        return TrainConfig(model=tiny_model, corpus=corpus, output=tmp_path / name, **(values | changes))

    return make


def losses(output: Path) -> list[float]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "step"]


def weights(output: Path) -> dict[str, bytes]:
    tensors = load_file(next((output / "model" / "transformer").glob("*.safetensors")))
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_corpus_in_s3_trains_as_it_does_from_a_disk(stored: str, tiny_corpus: Path, settings) -> None:
    train(settings(tiny_corpus, "disk"))
    there = settings(stored, "there")
    train(there)
    assert losses(there.output) == losses(there.output.parent / "disk")
    assert weights(there.output) == weights(there.output.parent / "disk")
    assert len(list((there.output / "corpus-cache").glob("*.arrow"))) == 2  # a shard is fetched once


def test_every_image_is_the_same_and_the_cache_stays_within_its_room(
    stored: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    here = Corpus(tiny_corpus, 0)
    first = RemoteShards(stored, tmp_path, 1.0)
    first.image(0, 0, 0)
    one_shard = next(tmp_path.glob("*.arrow")).stat().st_size
    there = Corpus(stored, 0, cache=tmp_path, cache_gb=1.5 * one_shard / 1e9)
    assert there.rows == here.rows
    for index in (0, 9, 1, 8, 0):  # to and fro between two shards of which one has room
        size = here.rows[index].size
        assert there.image(index, size).equal(here.image(index, size))
        assert len(list(tmp_path.glob("*.arrow"))) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock") == [".arrow"]


def test_a_corpus_that_was_replaced_is_fetched_anew(bucket: str, write_shard, tmp_path: Path) -> None:
    store, cache = Store(f"{bucket}/changing"), tmp_path / "cache"
    write_shard(tmp_path / "part-00000.parquet", [(32, 32)], seed=1)
    store.put(tmp_path / "part-00000.parquet", "part-00000.parquet")
    before = Corpus(store.address, cache=cache).image(0, (32, 32))
    write_shard(tmp_path / "part-00000.parquet", [(32, 32)], seed=2)
    store.put(tmp_path / "part-00000.parquet", "part-00000.parquet")
    after = Corpus(store.address, cache=cache).image(0, (32, 32))
    assert not after.equal(before) and after.equal(Corpus(tmp_path).image(0, (32, 32)))


def test_a_killed_run_goes_on_on_another_machine(
    bucket: str, stored: str, tiny_corpus: Path, settings, tmp_path: Path
) -> None:
    train(settings(tiny_corpus, "whole", steps=6))
    mirror = f"{bucket}/runs/killed"
    killed = settings(stored, "killed", steps=6, checkpoint_every=2, mirror=mirror)
    (tmp_path / "killed.json").write_text(json.dumps(killed.to_dict()))
    command = [sys.executable, "-m", "l2p_train", str(tmp_path / "killed.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not any("step-000004/state.json" in name for name in Store(mirror).files("checkpoints")):
        assert process.poll() is None and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(killed.output)  # the machine is gone, and with it its disk and the model
    elsewhere = settings(stored, "killed", steps=6, checkpoint_every=2, mirror=mirror)
    elsewhere = TrainConfig(**{**vars(elsewhere), "model": tmp_path / "fetched"})
    train(elsewhere)
    records = [json.loads(line) for line in (killed.output / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["event"] == "start"][-1] >= 4
    assert losses(killed.output) == losses(tmp_path / "whole")
    assert weights(killed.output) == weights(tmp_path / "whole")
    # A third machine finds that all is done, and the model; nothing half-written is left behind.
    shutil.rmtree(killed.output)
    third = TrainConfig(**{**vars(elsewhere), "output": tmp_path / "third"})
    assert launch(third).model == str(third.output / "model")
    assert not (third.output / "checkpoints").exists()
    with pytest.raises(TrainError, match=r"run with other settings \(learning_rate: 0.001 -> 0.01\)"):
        launch(TrainConfig(**{**vars(third), "output": tmp_path / "fourth", "learning_rate": 1e-2}))
    assert weights(third.output) == weights(tmp_path / "whole")
    names = Store(mirror).files()
    assert {name.split("/")[0] for name in names} == {
        *("checkpoints", "conditioning", "freeze_table.json", "initial", "metrics.jsonl", "model"),
        "result.json",
    }
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {
        f"step-{step:06d}" for step in (4, 6)
    }


def run_on_machines(configs: list[TrainConfig], folder: Path) -> None:
    """Train with one process for each config: two machines of a cluster, each with its own disk."""
    shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    processes = []
    for rank, config in enumerate(configs):
        path = folder / f"machine-{rank}.json"
        path.write_text(json.dumps(config.to_dict()))
        log = (folder / f"machine-{rank}.log").open("wb")
        command = [sys.executable, "-m", "l2p_train", str(path)]
        environment = os.environ | shared | {"RANK": str(rank)}
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    codes = [process.wait(timeout=500) for process in processes]
    assert codes == [0, 0], [(folder / f"machine-{rank}.log").read_text()[-2000:] for rank in (0, 1)]


def test_two_machines_that_share_no_disk_train_one_model_and_may_change_roles(
    bucket: str, stored: str, tiny_corpus: Path, settings, tmp_path: Path
) -> None:
    changes = {"zero_stage": 2, "checkpoint_every": 1}
    launch(settings(tiny_corpus, "shared", steps=4, **changes), processes=2)
    mirror = f"{bucket}/runs/two"
    one = settings(stored, "one", mirror=mirror, **changes)
    two = TrainConfig(**{**vars(one), "output": tmp_path / "two", "model": tmp_path / "fetched"})
    run_on_machines([one, two], tmp_path)
    assert not (two.output / "checkpoints").exists() or not list((two.output / "checkpoints").iterdir())
    longer = [TrainConfig(**{**vars(config), "steps": 4}) for config in (two, one)]
    run_on_machines(longer, tmp_path)
    assert losses(two.output) == losses(tmp_path / "shared")
    assert weights(two.output) == weights(tmp_path / "shared")


def test_a_checkpoint_that_not_all_machines_have_is_not_resumed_from(
    bucket: str, stored: str, settings, tmp_path: Path
) -> None:
    """Machines with disks of their own: what one wrote last may not have reached the others."""
    config = settings(stored, "mine", steps=2, checkpoint_every=1, mirror=f"{bucket}/runs/parts")
    train(config)
    newest = config.output / "checkpoints" / "step-000002"
    Store(config.mirror).remove(["checkpoints/step-000002/state.json", "result.json"])
    (config.output / "result.json").unlink()  # the run is not finished
    (newest / "rank-000.safetensors").unlink()
    mirror = Mirror(config)
    mirror.catch_up()
    assert not any("step-000002/state" in name for name in Store(config.mirror).files())
    mirror.fetch(drop=True)
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["step-000001"]


def test_a_mistyped_bucket_is_one_line_and_creates_nothing(bucket: str, stored: str, settings) -> None:
    with pytest.raises(TrainError, match=r"cannot read s3://bukcet/run: .*bucket does not exist"):
        launch(settings(stored, "a", mirror="s3://bukcet/run"))
    with pytest.raises(TrainError, match=r"cannot read s3://bukcet/corpus: .*bucket does not exist"):
        launch(settings("s3://bukcet/corpus", "b"))
    assert not fsspec.filesystem("s3", use_listings_cache=False).exists("bukcet")


def test_an_address_in_the_wrong_place_or_of_the_wrong_kind_is_refused(settings, tmp_path: Path) -> None:
    from l2p_train import config_from_mapping

    with pytest.raises(TrainError, match=r"corpus is 's3:/bucket/x': an address; give it as text"):
        settings(Path("s3://bucket/x"), "a")
    with pytest.raises(TrainError, match=r"mirror is 'run'; it must be an address"):
        settings(tmp_path, "a", mirror="run")
    with pytest.raises(TrainError, match=r"train.output: got the address 's3://b/o'"):
        config_from_mapping({"model": "m", "corpus": "s3://b/c", "output": "s3://b/o"})
    assert config_from_mapping({"model": "m", "corpus": "s3://b/c", "output": "o"}).corpus == "s3://b/c"
    with pytest.raises(TrainError, match=r"cannot use nonsense://x"):
        Store("nonsense://x")

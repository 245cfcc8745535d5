"""A transfer at an address: its machine dies, another goes on, and the result is that of a run on a disk."""

import json
import shutil
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import fsspec
import psutil
import pytest
import tomli_w
from l2p_data import PromptRequest
from l2p_data.prompt_settings import open_generator
from l2p_data.prompts.taxonomy import load_taxonomy
from l2p_run.places import write_json, write_text
from l2p_train.data.storage import Store
from l2p_transfer.cli import main
from l2p_transfer.config import load_config
from l2p_transfer.paths import RunPaths
from l2p_transfer.stages import Run, place_of
from l2p_transfer.storage import RunStorage


@pytest.fixture
def folder(tmp_path: Path, write_tiny_run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a config."""
    train = {"steps": 6, "checkpoint_every": 1, "sample_every": 0, "tensorboard": False, "zero_stage": 0}
    write_tiny_run(tmp_path, train=train)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(run: Path) -> dict[str, bytes]:
    """The weights and images of a run."""
    found = [*(run / "train/model/transformer").glob("*.safetensors"), *(run / "evaluation").rglob("*.png")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in found}


def kill_the_training(storage: str, step: str) -> None:
    """Waits until a checkpoint is in the bucket, then kills the training process as a power cut would."""
    while not any(name.endswith(f"{step}/state.json") for name in Store(storage).files("train/checkpoints")):
        time.sleep(0.05)
    for child in psutil.Process().children():
        if "l2p_train" in child.cmdline():
            child.kill()


def test_a_lost_machine_costs_nothing_that_another_one_cannot_fetch(
    bucket: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiny.toml", "--set", "run.output=alone"]) == 0
    storage = f"{bucket}/run"
    here = ["tiny.toml", "--set", f"run.storage={storage}"]
    threading.Thread(target=kill_the_training, args=(storage, "step-000002"), daemon=True).start()
    with pytest.raises(RuntimeError, match="exit code -9"):
        main(here)
    assert not (Path("run") / "corpus").exists(), "the corpus belongs at the address"
    shutil.rmtree("run")

    capsys.readouterr()
    assert main([*here, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["executed"] == ["training", "evaluation", "report"]
    records = [json.loads(line) for line in Path("run/train/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["event"] == "start"][-1] >= 2
    wanted = made(Path("alone"))
    assert len(wanted) == 1 + 2 * 3 and made(Path("run")) == wanted
    remote = json.loads(Store(storage).read("corpus/_manifest.json") or b"")
    assert remote["shards"] == json.loads(Path("alone/corpus/_manifest.json").read_text())["shards"]

    shutil.rmtree("run")
    assert main([*here, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["executed"] == []
    assert made(Path("run")) == wanted
    assert (Path("run/model") / "sampling.json").is_file() and Path("run/report.html").is_file()


def test_what_a_stage_left_comes_back_to_an_empty_disk_and_the_newer_side_wins(
    tmp_path: Path, minimal_config: Path
) -> None:
    """Without a training, of which this copies nothing but how to sample the model."""
    address = f"file://{tmp_path}/store/run"
    config = load_config(minimal_config, [f"run.output={tmp_path}/run", f"run.storage={address}"])
    paths, store, stages = RunPaths(config.run.output), Store(address), ["prompts", "training", "report"]
    storage = RunStorage(config, paths)
    left = {"prompts/generated.parquet": "p", "train/model/sampling.json": "s", "report.html": "r"}
    for name in [*left, "config.toml", "provenance.json", "timings.json", "metrics.jsonl"]:
        write_text(paths.root / name, left.get(name, name))
    for stage in stages:
        write_json(paths.marker(stage), {"stage": stage, "state": "done", "ended": "2026-01-01"})
        storage.keep(stage)
    shutil.rmtree(paths.root)
    write_text(tmp_path / "result.json", '{"steps": 1}')  # the trainer's own copy
    store.put(tmp_path / "result.json", "train/result.json")

    storage.fetch(stages)
    assert {name: (paths.root / name).read_text() for name in left} == left
    assert paths.config.read_text() == "config.toml" and (paths.model / "sampling.json").read_text() == "s"
    write_json(paths.marker("report"), {"stage": "report", "state": "done", "ended": "2027-01-01"})
    write_text(paths.report, "newer")
    write_json(paths.marker("prompts"), {"stage": "prompts", "state": "unfinished", "ended": "2025-01-01"})
    write_text(paths.prompts, "half")
    storage.fetch(stages)
    assert paths.report.read_text() == "newer" and paths.prompts.read_text() == "p"


def test_another_machine_finds_what_a_language_model_answered_to_the_one_that_died(
    bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Engine:
        """Stands for a server of a language model (tests/data has one)."""

        name = "stand-in"

        def ask(self, messages: Sequence[tuple[str, int]], *_: Any) -> Iterator[tuple[int, str]]:
            for index, (_, seed) in enumerate(messages):
                if len(asked) == 70:
                    asked.clear()
                    raise MemoryError
                asked.append(seed)
                yield index, json.dumps({"prompt": f"circle number {seed}"})

    monkeypatch.setattr("l2p_data.engines.choice.open_engine", lambda **_: nullcontext(Engine()))
    overrides = {"prompts": {"engine": "openai", "server": "http://localhost/v1", "model": "m"}}
    tables = tomllib.loads(Path("tiny.toml").read_text()) | overrides
    tables["run"] |= {"storage": f"{bucket}/run"}
    Path("tiny.toml").write_text(tomli_w.dumps(tables))
    config = load_config(Path("tiny.toml"))
    requests = [PromptRequest(category=load_taxonomy().categories[0], seed=seed) for seed in range(100)]

    def prompts(machine: str) -> list[str]:
        place = place_of(Run(config=config, paths=RunPaths(Path(machine))))
        with open_generator(config.prompts, place, seed=0, progress=lambda *_: None) as generator:
            return cast(list[str], generator.generate(requests))

    with pytest.raises(MemoryError):
        prompts("one")
    assert len(prompts("another")) == 100
    assert asked == list(range(70, 100)), "all 70 answers were at the address"
    assert not list(Path().glob("*/prompts"))


def test_a_mistyped_bucket_is_one_line_before_anything_is_made(
    bucket: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--dry-run"]):
        assert main(["tiny.toml", "--set", "run.storage=s3://bukcet/run", *more]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and "s3://bukcet/run" in lines[0] and "bucket does not exist" in lines[0]
    assert main(["tiny.toml", "--set", f"run.output={bucket}/run"]) == 2
    assert "it must be a local path (run.storage takes an address)" in capsys.readouterr().err
    assert not (folder / "run").exists()
    assert not fsspec.filesystem("s3", use_listings_cache=False).exists("bukcet")


def test_another_run_at_the_address_is_refused(
    bucket: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "config.toml"
    assert main(["tiny.toml", "--set", "run.output=out", "--set", "prompts.count=1", "--dry-run"]) == 0
    config.write_text(f'[run]\nstorage = "{bucket}/other"\n[prompts]\ncount = 99\n')
    store = Store(f"{bucket}/other")
    store.put(config, "config.toml")
    for painted, remedy in ((False, "or add --update to redo"), (True, "or choose another run.output")):
        if painted:
            store.put(config, "corpus/part-00000.parquet")
        capsys.readouterr()
        assert main(["tiny.toml", "--set", f"run.storage={bucket}/other"]) == 2
        said = capsys.readouterr().err
        assert "prompts.count: 99 -> 4" in said
        assert remedy in said

"""The same `train()` under torchrun, the deepspeed launcher and Ray Train, two processes each."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from l2p_train import NonFiniteLossError, TrainConfig, train
from l2p_train.machine.processes import free_port

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def settings(tiny_model: Path, tiny_corpus: Path):
    """The function output -> TrainConfig of a run of two steps."""

    def make(output: Path) -> TrainConfig:
        return TrainConfig(
            model=tiny_model,
            corpus=tiny_corpus,
            output=output,
            steps=2,
            batch_size=4,
            trainable=1,
            learning_rate=1e-3,
            log_every=1,
            sample_every=0,
            tensorboard=False,
            precision="fp32",
            zero_stage=2,
        )

    return make


@pytest.fixture(scope="module")
def wanted(settings, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process without a launcher."""
    output = tmp_path_factory.mktemp("alone")
    train(settings(output))
    return losses(output)


def losses(output: Path) -> list[float]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "step"]


def launchers(config: Path) -> dict[str, list[str]]:
    port = str(free_port())
    entry = ["-m", "l2p_train", str(config)]
    return {
        "torchrun": [str(BIN / "torchrun"), "--nproc-per-node=2", f"--master-port={port}", *entry],
        "deepspeed": [
            *(str(BIN / "deepspeed"), "--num_accelerators=2", f"--master_port={port}"),
            *("--module", "l2p_train", str(config)),
        ],
    }


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_the_entry_runs_unchanged_under(launcher: str, settings, wanted, tmp_path: Path):
    config = settings(tmp_path / "run")
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config.to_dict()))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    ended = subprocess.run(
        launchers(path)[launcher],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
    assert losses(config.output) == pytest.approx(wanted, rel=1e-5)
    assert json.loads((config.output / "checkpoints/step-000002/state.json").read_text())["processes"] == 2


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of one node."""
    # Under `uv run` it would else build this environment again for every worker.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray

    ray.init(
        address="local",  # never somebody's running cluster
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}},
    )
    yield ray
    ray.shutdown()


def test_ray_trains_in_two_workers_and_a_second_call_finds_the_result(
    ray: Any, settings, wanted, tmp_path: Path
):
    from l2p_train.run.ray_train import train_on_ray

    config = settings(tmp_path / "run")
    result = train_on_ray(config, 2, use_gpu=False, max_failures=0)
    assert result.steps == 2 and Path(result.model).is_dir()
    assert losses(config.output) == pytest.approx(wanted, rel=1e-5)
    state = json.loads((config.output / "checkpoints/step-000002/state.json").read_text())
    assert state["processes"] == 2
    before = (config.output / "metrics.jsonl").read_text()
    assert train_on_ray(config, 2, use_gpu=False, max_failures=0) == result
    assert (config.output / "metrics.jsonl").read_text() == before


def test_ray_does_not_try_again_what_a_loss_that_is_not_a_number_ended(
    ray: Any, settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from l2p_train.run.ray_train import train_on_ray

    config = replace(settings(tmp_path / "run"), learning_rate=1e30, offload_optimizer=True)
    with pytest.raises(NonFiniteLossError, match=r"the loss of step \d is .*Lower learning_rate"):
        train_on_ray(config, 2, use_gpu=False, max_failures=2)
    records = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert [record["event"] for record in records].count("start") == 1
    assert len(list((config.output / "non-finite").iterdir())) == 2
    assert "the optimiser steps on one thread" in caplog.text

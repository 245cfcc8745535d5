"""Runs in processes of their own: several processes, a SIGKILL, torchrun, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from l2p_train import TrainConfig, launch
from safetensors.torch import load_file


def config(tiny_model: Path, tiny_corpus: Path, output: Path, **changes) -> TrainConfig:
    values = {
        "steps": 4,
        "batch_size": 4,
        "trainable": 1,
        "learning_rate": 1e-3,
        "log_every": 1,
        "checkpoint_every": 2,
        "sample_every": 4,
        "sample_steps": 2,
        "sample_count": 3,
        "tensorboard": False,
        "precision": "fp32",
    }
    return TrainConfig(model=tiny_model, corpus=tiny_corpus, output=output, **(values | changes))


def losses(output: Path) -> list[float]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "step"]


def final_weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(next((output / "model" / "transformer").glob("*.safetensors")))


def test_two_processes_train_as_one_and_a_killed_run_resumes_bit_for_bit(tiny_model, tiny_corpus, tmp_path):
    events = []
    two = launch(
        config(tiny_model, tiny_corpus, tmp_path / "two", zero_stage=2), processes=2, on_event=events.append
    )
    assert two.steps == 4 and [event["event"] for event in events].count("step") == 4

    killed = config(tiny_model, tiny_corpus, tmp_path / "killed")
    path = tmp_path / "killed.json"
    path.write_text(json.dumps(killed.to_dict()))
    command = [sys.executable, "-m", "l2p_train", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = killed.output / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.is_file() and '"step": 3,' in metrics.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed.output / "result.json").exists()
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

    whole = subprocess.run(
        [*command[:-1], str(write(tmp_path, config(tiny_model, tiny_corpus, tmp_path / "whole")))],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert whole.returncode == 0, whole.stderr.decode()[-2000:]
    assert losses(killed.output) == losses(tmp_path / "whole")
    wanted, resumed, doubled = (final_weights(tmp_path / name) for name in ("whole", "killed", "two"))
    for name, tensor in wanted.items():
        assert torch.equal(resumed[name], tensor), name
        torch.testing.assert_close(doubled[name], tensor, atol=5e-5, rtol=1e-3)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def write(folder: Path, settings: TrainConfig) -> Path:
    path = folder / f"{settings.output.name}.json"
    path.write_text(json.dumps(settings.to_dict()))
    return path


def test_a_mistake_in_a_process_becomes_the_launchers_error(tiny_model, tiny_corpus, tmp_path):
    from l2p_train import TrainError

    with pytest.raises(TrainError, match=r"no \*.parquet file there"):
        launch(config(tiny_model, tmp_path, tmp_path / "run"), processes=1)
    with pytest.raises(TrainError, match="does not divide over 3 processes"):
        launch(config(tiny_model, tiny_corpus, tmp_path / "run"), processes=3)


def test_the_command_prints_one_line_and_exits_with_2(tmp_path, capsys):
    from l2p_train.__main__ import main

    path = tmp_path / "c.toml"
    path.write_text('model = "m"\ncorpus = "c"\noutput = "o"\nstep = 3\n')
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {path}: unknown key 'step'; did you mean 'steps'?\n"
    assert main([str(tmp_path / "none.toml")]) == 2


def test_a_dry_run_writes_nothing(tiny_model, tiny_corpus, tmp_path, capsys):
    from l2p_train.__main__ import main

    path = write(tmp_path, config(tiny_model, tiny_corpus, tmp_path / "run"))
    assert main([str(path), "--dry-run"]) == 0
    assert "tokens per image       260 (4 of the image)" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]

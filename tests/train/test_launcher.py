"""Runs in processes of their own: several processes, a SIGKILL, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from l2p_train import Interrupted, NonFiniteLossError, TrainConfig, TrainError, launch, train
from l2p_train.machine.processes import check_processes, process_environments
from l2p_train.run import launcher
from l2p_train.run.launcher import _outcome
from safetensors.torch import load_file


def config(tiny_model: Path, tiny_corpus: Path, output: Path, **changes) -> TrainConfig:
    values = {
        "steps": 4,
        "batch_size": 4,
        "trainable": 1,
        "learning_rate": 1e-3,
        "log_every": 1,
        "checkpoint_every": 2,
        "sample_every": 0,
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


def test_a_killed_run_resumes_bit_for_bit_and_other_numbers_of_processes_agree(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
):
    """One test for several claims: each process costs seconds to start."""
    train(config(tiny_model, tiny_corpus, tmp_path / "whole", steps=6))

    killed = config(tiny_model, tiny_corpus, tmp_path / "killed", steps=6)
    (tmp_path / "killed.json").write_text(json.dumps(killed.to_dict()))
    command = [sys.executable, "-m", "l2p_train", str(tmp_path / "killed.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, deadline = killed.output / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.is_file() and '"step": 3,' in metrics.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed.output / "result.json").exists()
    again = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr.decode()[-2000:]
    assert losses(killed.output) == losses(tmp_path / "whole")
    wanted, resumed = final_weights(tmp_path / "whole"), final_weights(killed.output)
    assert wanted.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in wanted.items())

    events: list[dict] = []
    two = config(tiny_model, tiny_corpus, tmp_path / "two", zero_stage=2, sample_every=4)
    assert launch(two, processes=2, on_event=events.append).steps == 4
    assert [event["event"] for event in events].count("step") == 4
    assert (two.output / "samples" / "step-000004.png").is_file()
    # Another number of processes goes on where two stopped.
    train(config(tiny_model, tiny_corpus, two.output, zero_stage=2, steps=6))
    assert losses(two.output) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    for name, tensor in final_weights(two.output).items():
        torch.testing.assert_close(tensor, wanted[name], atol=5e-5, rtol=1e-3)


def test_mistakes_are_found_before_a_process_starts(tiny_model: Path, tiny_corpus: Path, tmp_path: Path):
    with pytest.raises(TrainError, match=r"no \*.parquet file there"):
        launch(config(tiny_model, tmp_path, tmp_path / "run"), processes=1)
    with pytest.raises(TrainError, match=r"no transformer/config.json"):
        launch(config(tmp_path, tiny_corpus, tmp_path / "run"), processes=1)
    with pytest.raises(TrainError, match="does not divide over 3 processes"):
        launch(config(tiny_model, tiny_corpus, tmp_path / "run"), processes=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        ([2, -9], TrainError, "the disk is full"),
        ([-9, 3], NonFiniteLossError, "the disk is full"),
        ([143, 143], Interrupted, "after step 7"),
        ([1, -9], RuntimeError, "process 0 ended with exit code 1.*Traceback"),
    ],
)
def test_exit_codes_of_processes_become_the_launchers_errors(codes, error, message, tmp_path: Path):
    settings = config(tmp_path, tmp_path, tmp_path)
    for rank in range(2):
        (tmp_path / f"rank-{rank}.log").write_text("Traceback\nerror: the disk is full\n")
    (tmp_path / "metrics.jsonl").write_text('{"event": "interrupted", "step": 7}\n')
    with pytest.raises(error, match=f"(?s){message}"):
        _outcome(settings, codes, tmp_path)


def ended_by(codes_or_seconds: list[str]) -> list[subprocess.Popen[bytes]]:
    """Processes of Python that run these statements; they ignore SIGTERM."""
    first = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    return [subprocess.Popen([sys.executable, "-c", first + code]) for code in codes_or_seconds]


def test_one_that_waits_for_an_interrupted_process_is_ended_and_counts_as_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """NCCL waits at a barrier for a peer that is gone, and hears no signal."""
    monkeypatch.setattr(launcher, "GRACE", 0.5)
    started = time.monotonic()
    codes = launcher._wait(
        ended_by(["sys.exit(143)", "time.sleep(300)"]), tmp_path / "metrics.jsonl", None, []
    )
    assert codes == [143, 143] and time.monotonic() - started < 100
    with pytest.raises(Interrupted):
        _outcome(config(tmp_path, tmp_path, tmp_path), codes, tmp_path)


def test_one_that_ends_by_itself_within_the_grace_keeps_its_code(tmp_path: Path):
    late = "time.sleep(1); sys.exit(0)"
    assert launcher._wait(ended_by(["sys.exit(130)", late]), tmp_path / "metrics.jsonl", None, []) == [130, 0]


def test_a_process_that_a_signal_ends_before_it_can_handle_it_counts_as_interrupted(tmp_path: Path):
    plain = [sys.executable, "-c", "import time; time.sleep(300)"]
    codes = launcher._wait([subprocess.Popen(plain)], tmp_path / "metrics.jsonl", None, [signal.SIGTERM])
    assert codes == [143]


INTERRUPTED = """
import json, sys
from l2p_train import Interrupted, config_from_mapping, launch
try:
    launch(config_from_mapping(json.load(open(sys.argv[1]))), processes=2)
except Interrupted as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("number", "delay"), [(signal.SIGINT, 0.0), (signal.SIGINT, 0.5), (signal.SIGTERM, 1)]
)
def test_a_signal_while_processes_start_is_an_interruption(
    number: signal.Signals, delay: float, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
):
    """Python takes a moment to start and torch takes seconds to import."""
    settings = config(tiny_model, tiny_corpus, tmp_path / "run", steps=1000)
    (tmp_path / "run.json").write_text(json.dumps(settings.to_dict()))
    (tmp_path / "script.py").write_text(INTERRUPTED)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run.json")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log, deadline = settings.output / "logs" / "rank-0.log", time.monotonic() + 300
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, "Traceback" in said) == (128 + number, False), said
    last = said.splitlines()[-1]  # before it the corpus, made by hand, is said to have no manifest
    assert last.startswith("interrupted after step 0; run the same command again to resume"), said
    for rank in range(2):
        logged = (settings.output / "logs" / f"rank-{rank}.log").read_text()
        assert "Traceback" not in logged, logged


def test_processes_share_the_cores_and_on_gpus_a_users_choice_stays(monkeypatch: pytest.MonkeyPatch):
    cores = len(os.sched_getaffinity(0))
    names = ("OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "DS_ACCELERATOR")
    for name in names:
        monkeypatch.delenv(name, raising=False)

    def environments(on_gpus: bool, processes: int = 2) -> list[tuple[str | None, ...]]:
        made = process_environments(processes, on_gpus=on_gpus)
        assert [one["LOCAL_RANK"] for one in made] == [str(rank) for rank in range(processes)]
        return [tuple(one.get(name) for name in names) for one in made]

    shared = str(max(1, cores // 2))
    assert environments(on_gpus=False) == [(shared, None, None, "cpu")] * 2
    assert environments(on_gpus=True) == [(shared, "expandable_segments:True", None, None)] * 2
    assert environments(on_gpus=True, processes=4 * cores)[0][0] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    assert environments(on_gpus=True) == [("7", None, "max_split_size_mb:128", None)] * 2
    assert environments(on_gpus=False)[0][0] == shared


def test_more_processes_than_gpus_are_refused():
    check_processes(8, 8)
    check_processes(8, 0)  # a CPU takes any number
    with pytest.raises(TrainError, match="8 processes want a GPU each, and this machine has 4; use 4"):
        check_processes(8, 4)


def test_a_damaged_part_of_a_checkpoint_ends_all_processes_with_one_line(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
):
    """Each reads one of the two files; the one that reads the good one must not go on alone."""
    launch(config(tiny_model, tiny_corpus, tmp_path / "run", steps=2), processes=2)
    damaged = tmp_path / "run" / "checkpoints" / "step-000002" / "rank-001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(TrainError, match=r"rank-001.safetensors is missing or damaged; delete"):
        launch(config(tiny_model, tiny_corpus, tmp_path / "run", steps=4), processes=2)
    for rank in range(2):
        log = (tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text()
        assert "error: " in log and "rank-001.safetensors is missing or damaged" in log


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

    path = tmp_path / "run.json"
    path.write_text(json.dumps(config(tiny_model, tiny_corpus, tmp_path / "run").to_dict()))
    assert main([str(path), "--dry-run"]) == 0
    assert "tokens per image       260 (4 of the image)" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]

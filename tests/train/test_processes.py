"""The same run in 1, 2 and 4 processes, and what each of them holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from l2p_train import TrainConfig

SETTINGS = {
    "steps": 3,
    "batch_size": 4,
    "trainable": 1,
    "learning_rate": 1e-3,
    "log_every": 1,
    "checkpoint_every": 0,
    "sample_every": 0,
    "tensorboard": False,
    "precision": "fp32",
    "validation_images": 3,
    "loader_workers": 1,
}
RUNS = {  # name -> processes, changes
    "one": (1, {"zero_stage": 1}),
    "two": (2, {"zero_stage": 1}),
    "four": (4, {"zero_stage": 1}),
    "two, stage 2": (2, {"zero_stage": 2}),
    "four, stage 3": (4, {"zero_stage": 3}),
    "one, muon": (1, {"zero_stage": 0, "optimizer": "muon"}),
    "two, muon": (2, {"zero_stage": 0, "optimizer": "muon"}),
    "one, 8 bit": (1, {"zero_stage": 1, "frozen_weights": "int8"}),
    "two, 8 bit, stage 3": (2, {"zero_stage": 3, "frozen_weights": "int8"}),
}


@pytest.fixture(scope="module")
def outputs(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All runs of the table, each in its number of processes."""
    folder, jobs, found = tmp_path_factory.mktemp("groups"), [], {}
    for index, (name, (processes, changes)) in enumerate(RUNS.items()):
        found[name] = folder / f"run-{index}"
        config = TrainConfig(model=tiny_model, corpus=tiny_corpus, output=found[name], **(SETTINGS | changes))
        path = folder / f"run-{index}.json"
        path.write_text(json.dumps(config.to_dict()))
        jobs.append([str(path), processes])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("run_group.py")
    ended = subprocess.run(
        [sys.executable, str(script), str(folder / "jobs.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return found


def curve(output: Path, event: str) -> list[float]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == event]


@pytest.mark.parametrize("name", ["two", "four", "two, stage 2", "four, stage 3"])
def test_any_number_of_processes_gives_the_same_losses(name: str, outputs: dict[str, Path]):
    for event, count in (("step", 3), ("validation", 1)):
        wanted = curve(outputs["one"], event)
        assert len(wanted) == count
        assert curve(outputs[name], event) == pytest.approx(wanted, rel=1e-5)


def test_muon_shares_its_work_among_the_processes_and_takes_the_same_steps(outputs):
    """Its matrices are rounded to bfloat16, where a difference in the last bit of float32 can show."""
    wanted = curve(outputs["one, muon"], "step")
    assert curve(outputs["two, muon"], "step") == pytest.approx(wanted, rel=1e-3)
    adamw = curve(outputs["one"], "step")
    assert wanted[0] == pytest.approx(adamw[0], rel=1e-5) and wanted[2] != adamw[2]


def test_8_bit_frozen_weights_give_the_same_losses_whether_or_not_zero_3_shares_the_rest(outputs):
    wanted = curve(outputs["one, 8 bit"], "step")
    assert curve(outputs["two, 8 bit, stage 3"], "step") == pytest.approx(wanted, rel=1e-5)
    exact = curve(outputs["one"], "step")
    assert wanted != exact and wanted == pytest.approx(exact, rel=5e-3)


def test_under_zero_3_no_process_holds_the_whole_model_even_before_the_engine_exists(outputs):
    (whole,) = [json.loads(path.read_text()) for path in outputs["one"].glob("report-*.json")]
    assert whole["held"] == whole["elements"]
    shares = [json.loads(path.read_text()) for path in outputs["four, stage 3"].glob("report-*.json")]
    assert [share["elements"] for share in shares] == [0] * 4
    for share in shares:  # a quarter, and the padding of each tensor to equal parts
        assert whole["elements"] / 4 <= share["held"] < whole["elements"] / 4 * 1.01

"""`l2p-transfer CONFIG --rehearse` on the tiny config: all stages for real, measured, then removed."""

import contextlib
import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from l2p_transfer.cli import main
from l2p_transfer.config import load_config
from l2p_transfer.planning import rehearsal

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_rehearsal_measures_every_stage_resumes_alike_and_leaves_a_table_alone(
    write_tiny_run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_run(tmp_path)
    with contextlib.chdir(tmp_path):
        assert main(["tiny.toml", "--rehearse", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["resumed_alike"] is True and result["problems"] == []
    found = {(row["stage"], row["what"]): row for row in result["rows"]}
    for stage in ("prompts", "filter", "images", "surgery", "training", "evaluation", "report"):
        assert found[stage, "time"]["measured"] > 0
    for name in ("a checkpoint", "initial and final model", "source"):
        row = found["disk", name]
        assert row["measured"] == pytest.approx(row["planned"], rel=0.1), name
    assert found["training", "reached, all processes"]["measured"] > 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"tiny.toml", "metadata.jsonl", "run-rehearsal.json"}
    assert json.loads((tmp_path / "run-rehearsal.json").read_text()) == result


def test_an_interrupted_rehearsal_goes_on_and_another_config_does_not_take_its_folder(
    write_tiny_run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tiny_run(tmp_path)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with contextlib.chdir(tmp_path):
        monkeypatch.setattr(rehearsal, "execute", interrupt)
        assert main(["tiny.toml", "--rehearse"]) == 130
        monkeypatch.undo()
        weights = tmp_path / "run-rehearsal" / "source" / "transformer"
        before = {path: path.stat().st_mtime_ns for path in weights.glob("*.safetensors")}
        assert before
        capsys.readouterr()
        assert main(["tiny.toml", "--rehearse", "--set", "train.noise_shift=2.0"]) == 2
        assert "holds a rehearsal with other settings" in capsys.readouterr().err

        monkeypatch.setattr(rehearsal, "execute", interrupt)
        assert main(["tiny.toml", "--rehearse"]) == 130
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_disk_that_is_too_small_is_said_before_anything_large_is_written(
    write_tiny_run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tiny_run(tmp_path)
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda path: usage)
    with contextlib.chdir(tmp_path):
        assert main(["tiny.toml", "--rehearse"]) == 2
    said = capsys.readouterr().err
    assert "and 0.0 GB are free" in said and said.count("\n") == 1
    assert not (tmp_path / "run-rehearsal" / "source").exists()


def test_a_training_that_this_machines_memory_cannot_hold_is_said_before_it_runs(
    write_tiny_run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from l2p_plan.rehearsal import session

    write_tiny_run(tmp_path)
    monkeypatch.setattr(session, "free_memory_of_machine", lambda: 10**5)
    with contextlib.chdir(tmp_path):
        assert main(["tiny.toml", "--rehearse"]) == 2
    said = capsys.readouterr().err
    assert "GB are free; rehearse fewer blocks with --rehearse-depth 1" in said
    assert not (tmp_path / "run-rehearsal" / "run" / "train").exists()


def test_noise_and_short_prompts_do_not_scale_the_plan_of_the_whole_run() -> None:
    from l2p_plan.rehearsal.table import Row

    row = Row(stage="disk", what="corpus", unit="GB", planned=1.0, measured=1.9, whole=30.0)
    assert not row.off


@pytest.mark.parametrize("name", ["z-image-1k", "flux-1k", "sd3.5-1k", "z-image-4k", "mini"])
def test_shipped_configs_are_rehearsed_with_their_own_settings_on_few_items(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.toml")
    small = rehearsal.small_config(config, rehearsal.Options(size=256))
    assert (small.images.width, small.images.height, small.images.buckets) == (256, 256, None)
    for kept in ("zero_stage", "batch_size", "trainable", "precision", "gradient_checkpointing", "optimizer"):
        assert getattr(small.train, kept) == getattr(config.train, kept)
    assert small.train.steps == rehearsal.STEPS
    folder = rehearsal.folder_of(config)
    places = (small.run.output, small.source.model, small.train.output, small.train.corpus)
    assert all(Path(place).is_relative_to(folder) for place in places)
    assert small.run.storage is None and config.run.output != folder

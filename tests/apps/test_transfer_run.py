"""The whole path on an untrained miniature source: every stage for real, only short, without Ray's start-up.

The README's quickstart, which CI runs, takes the same path with Ray actors and worker processes.
"""

import contextlib
import errno
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from l2p_train.errors import TrainError
from l2p_transfer.cli import main
from PIL import Image
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, write_tiny_run: Callable[..., None]
) -> Iterator[tuple[Path, str]]:
    """A finished run and what the command printed; the working directory is the run's parent."""
    folder = tmp_path_factory.mktemp("transfer")
    write_tiny_run(folder)
    out = io.StringIO()
    with contextlib.chdir(folder):
        with contextlib.redirect_stdout(out):
            assert main(["tiny.toml"]) == 0
        yield folder, out.getvalue()


def test_a_run_leaves_everything_the_contract_names(finished: tuple[Path, str]) -> None:
    folder, out = finished
    run = folder / "run"
    for name in (
        "config.toml",
        "provenance.json",
        "metrics.jsonl",
        "timings.json",
        "prompts/generated.parquet",
        "prompts/filtered.parquet",
        "corpus/_manifest.json",
        "initial/surgery_report.json",
        "train/metrics.jsonl",
        "train/freeze_table.json",
        "model/model_index.json",
        "model/sampling.json",
        "evaluation/results.json",
        "evaluation/source/00001/samples/0000.png",
        "evaluation/l2p/00001/samples/0000.png",
        "samples/source-vs-l2p.png",
        "samples/loss.png",
        "report.html",
        "report.md",
    ):
        assert (run / name).is_file(), name
    assert "run/report.html" in out
    timings = json.loads((run / "timings.json").read_text())
    assert [row["stage"] for row in timings] == [
        "prompts",
        "filter",
        "images",
        "surgery",
        "training",
        "evaluation",
        "report",
    ]
    assert all(row["state"] == "done" and row["seconds"] > 0 and row["peak_bytes"] > 1e8 for row in timings)


def test_middle_blocks_are_bit_identical_and_the_ends_are_not(finished: tuple[Path, str]) -> None:
    initial, trained = (
        load_file(next((finished[0] / "run" / name / "transformer").glob("*.safetensors")))
        for name in ("initial", "model")
    )
    assert initial.keys() == trained.keys()
    moved = {name for name in initial if not torch.equal(initial[name], trained[name])}
    middle = {name for name in initial if any(name.startswith(f"trunk.layers.{i}.") for i in range(1, 5))}
    assert middle
    assert not moved & middle
    for part in ("trunk.layers.0.", "trunk.layers.5.", "trunk.all_x_embedder", "detailer_head"):
        assert any(name.startswith(part) for name in moved), part


def test_the_report_is_one_self_contained_page(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 6
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|@import|url\((?!#)""", page)
    for text in (
        "From the paper, for context only",
        "FD-efficientnet-lite0",
        "Freezing: what trained",
        "loss (eq. 5)",
    ):
        assert text in page, text
    markdown = (finished[0] / "run" / "report.md").read_text()
    for line in markdown.splitlines():
        if "](samples/" in line:
            assert (finished[0] / "run" / line.split("](")[1].rstrip(")")).is_file(), line


def test_running_again_says_that_all_is_done(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    stamp = (finished[0] / "run" / "report.html").stat().st_mtime_ns
    assert main(["tiny.toml"]) == 0
    out, err = capsys.readouterr()
    assert "All stages are done" in out
    assert err.count("done before") == 7
    assert (finished[0] / "run" / "report.html").stat().st_mtime_ns == stamp


def test_a_changed_config_is_refused_with_the_difference(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished[0] / "run" / "config.toml").read_bytes()
    assert main(["tiny.toml", "--set", "prompts.count=5", "--set", "train.steps=3"]) == 2
    err = capsys.readouterr().err
    assert "prompts.count: 4 -> 5" in err
    assert main(["tiny.toml", "--set", "train.steps=3"]) == 2
    err = capsys.readouterr().err
    assert "train.steps: 2 -> 3" in err
    assert "--update" in err
    assert (finished[0] / "run" / "config.toml").read_bytes() == before


def test_a_full_disk_is_one_line(
    tmp_path: Path,
    write_tiny_run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("l2p_data.prompts.generation.generate_prompts", full)
    assert main(["tiny.toml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: cannot write: No space left on device; free some space and run the same command again"
    )


def test_what_a_stage_failed_by_can_be_changed_while_it_has_left_nothing(
    tmp_path: Path,
    write_tiny_run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tiny_run(tmp_path, train={"micro_batch_size": 2})
    monkeypatch.chdir(tmp_path)

    def fails(*_: object, **__: object) -> None:
        raise TrainError("out of memory")

    for stage in ("l2p_arch.surgery.convert.convert", "l2p_train.run.launcher.launch"):
        with monkeypatch.context() as patch:
            patch.setattr(stage, fails)
            assert main(["tiny.toml"]) == 2
            assert capsys.readouterr().err.splitlines()[-1] == "error: out of memory"
    other = ["--set", "train.micro_batch_size=1", "--set", "train.gradient_checkpointing=true"]
    assert main(["tiny.toml", *other]) == 2
    assert "add --update" in capsys.readouterr().err
    assert main(["tiny.toml", "--set", "surgery.dtype=float16", "--update"]) == 2  # that one is done
    capsys.readouterr()
    assert main(["tiny.toml", *other, "--update"]) == 0
    done = capsys.readouterr().err
    assert done.count("done before") == 4
    before = Path("run/config.toml").read_bytes()
    for again in (["train.micro_batch_size=2"], ["train.micro_batch_size=1", "--set", "train.steps=1"]):
        same = ["--set", "train.gradient_checkpointing=true", "--set", *again, "--update"]
        for dry in ([], ["--dry-run"]):
            assert main(["tiny.toml", *same, *dry]) == 2
            assert "choose another run.output" in capsys.readouterr().err
    assert Path("run/config.toml").read_bytes() == before


def test_a_run_that_another_process_holds_is_refused(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    with (finished[0] / "run" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert main(["tiny.toml"]) == 2
    assert "another l2p-transfer is working in" in capsys.readouterr().err


def test_an_update_redoes_what_it_touches(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a copy: more failures in the report means a new report and nothing else."""
    shutil.copytree("run", "copy", symlinks=True)
    sets = ["--set", "run.output=copy", "--set", "report.failures=1", "--update", "--json"]
    assert main(["tiny.toml", *sets]) == 0
    assert json.loads(capsys.readouterr().out)["executed"] == ["report"]


def test_a_truncated_shard_is_named(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("run", "damaged", symlinks=True)
    shard = Path("damaged/corpus/part-00000.parquet")
    shard.write_bytes(shard.read_bytes()[:-100])
    Path("damaged/stages/images.json").unlink()
    assert main(["tiny.toml", "--set", "run.output=damaged"]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("error: ")
    assert "part-00000.parquet" in err


def test_generate_makes_a_picture_that_remembers_how(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    from l2p_generate.cli import main as generate

    assert generate(["--model", "run", "two red circles on a gray background", "-o", "out.png"]) == 0
    image = Image.open("out.png")
    assert image.size == (64, 64)
    parameters = json.loads(image.text["l2p"])
    assert parameters["prompt"] == "two red circles on a gray background"
    assert (parameters["seed"], parameters["num_inference_steps"], parameters["noise_shift"]) == (42, 1, 3.0)
    again = [
        "--model",
        "run/model",
        "a ring",
        "two red circles on a gray background",
        "-n",
        "2",
        "-o",
        "more.png",
    ]
    assert generate([*again, "--batch-size", "3"]) == 0
    assert capsys.readouterr().out.split() == ["out.png", *(f"more-000{i}.png" for i in range(4))]
    same = Image.open("more-0002.png")  # the same prompt and seed, in another batch
    difference = torch.tensor(list(image.tobytes())).sub(torch.tensor(list(same.tobytes()))).abs().max()
    assert int(difference) <= 1


def test_generate_refuses_bad_input_in_one_line(
    finished: tuple[Path, str], untrained_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from l2p_generate.cli import main as generate

    for arguments, message in (
        (["--model", "nowhere", "a ring"], "nowhere does not exist; give a run directory"),
        (["--model", str(untrained_source), "a ring"], "is no L2P model"),
        (["--model", "run/corpus", "a ring"], "holds no model_index.json"),
        (
            ["--model", "run", "a ring", "--height", "70"],
            "height 70 is not a multiple of patch size 16; use 64 or 80",
        ),
        (["--model", "run", "a ring", "-o", "out.jpg"], "must end in .png"),
        (["--model", "run", " "], "a prompt is empty"),
    ):
        assert generate(arguments) == 2
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1, err
        assert message in err

"""What is wrong in a config ends in one line before anything is painted; what is damaged is made again."""

import json
import os
import shutil
from pathlib import Path

import pytest
from l2p_run.errors import UserError
from l2p_run.places import write_json
from l2p_train.run.run_directory import steps_done
from l2p_transfer.cli import main
from l2p_transfer.config import load_config
from l2p_transfer.contents import contents
from l2p_transfer.paths import RunPaths
from l2p_transfer.runner import _claim, _intact, check_unchanged, identities


@pytest.fixture
def config_file(minimal_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The least that a config must say, in a directory of its own below the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("L2P_CACHE", str(tmp_path / "cache"))
    return minimal_config


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=-7",
        "run.seed=18446744073709551616",
        "run.storage=5",
        "source.guidance_scale=nan",
        "source.guidance_scale=-1.0",
        "source.num_inference_steps=50000",
        "source.max_sequence_length=-1",
        "source.pipeline_kwargs={strength = inf}",
        "prompts.count=99999999999999999999999",
        "prompts.tensor_parallel=0",
        "prompts.replicas=0",
        "prompts.subjects_per_message=0",
        "prompts.engine_kwargs={gpu_memory_utilization = nan}",
        "filter.unsafe_score=inf",
        "filter.max_characters=nan",
        "images.width=2000000000",
        "images.height=-64",
        "images.rows_per_shard=0",
        "surgery.patch_size=0",
        "surgery.head_channels=[0]",
        "train.processes=0",
        "train.processes=99999999999",
        "train.eps=-1e-8",
        "train.noise_shift=-inf",
        "train.gradient_clipping=-2",
        "train.sample_steps=-1",
        "train.weight_decay=nan",
        "evaluate.seed=-1",
        "evaluate.seed=9223372036854775808",
        "evaluate.noise_shift=-0.5",
        "evaluate.noise_shift=inf",
        "evaluate.guidance_scale=inf",
        "evaluate.num_inference_steps=0",
        "evaluate.batch_size=0",
        "report.failures=-1",
        "cluster.max_failures=-1",
        "cluster.cpus_per_process=0",
    ],
)
def test_a_number_that_no_run_can_have_ends_with_the_config(
    config_file: Path, override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config_file), "--dry-run", "--set", override]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith(f"error: {override.partition('=')[0]}"), said.err


@pytest.mark.parametrize(
    "content",
    [
        "run = 5",
        'run = "output"',
        "train = true",
        "source = []",
        "images = 1.5",
        "[[evaluate]]",
        "a = " + "[" * 9_000,
        "run = {output = {x = 1}}",
        '[run]\noutput = "a\\u0000b"',
        "[run]\noutput = ''",
        "[run]\noutput = 5",
        "\0",
    ],
)
def test_a_config_of_another_shape_is_one_line(
    config_file: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file.write_text(content)
    for sets in ([], ["--set", "images.width=64"]):
        assert main([str(config_file), "--dry-run", *sets]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize("name", ["x" * 300, "file/run", "loop/run"])
def test_an_output_that_cannot_be_is_one_line(
    config_file: Path, untrained_source: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("precious")
    os.symlink("loop", "loop")
    sets = ["--set", f"run.output={name}", "--set", f"source.model={untrained_source}"]
    assert main([str(config_file), *sets]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert Path("file").read_text() == "precious"


def test_a_refused_folder_keeps_nothing_of_ours(config_file: Path, untrained_source: Path) -> None:
    Path("papers").mkdir()
    Path("papers/thesis.tex").write_text("precious")
    sets = ["--set", "run.output=papers", "--set", f"source.model={untrained_source}"]
    assert main([str(config_file), *sets]) == 2
    assert os.listdir("papers") == ["thesis.tex"]


def _identities(config_file: Path, *overrides: str) -> dict[str, tuple[str, ...]]:
    return {stage.name: known for stage, known in identities(load_config(config_file, overrides))}


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("prompts.grammar", ["prompts", "filter", "images", "surgery", "training", "evaluation", "report"]),
        ("evaluate.metadata", ["evaluation", "report"]),
    ],
)
def test_a_file_that_changed_makes_its_stage_and_the_later_ones_run_again(
    config_file: Path, key: str, stages: list[str]
) -> None:
    Path("read.txt").write_text("one")
    before = _identities(config_file, f"{key}=read.txt")
    shutil.copy("read.txt", "copy.txt")
    Path("read.txt").write_text("two")
    after = _identities(config_file, f"{key}=read.txt")
    assert [name for name in before if before[name][0] != after[name][0]] == stages
    assert [known[1] for known in before.values()] == [known[1] for known in after.values()], "settings alone"
    Path("read.txt").write_text("one")
    assert _identities(config_file, f"{key}=read.txt") == before


def test_weights_that_changed_in_their_middle_make_the_images_anew(
    config_file: Path, untrained_source: Path
) -> None:
    shutil.copytree(untrained_source, "model")
    path = max(Path("model").rglob("*.safetensors"), key=lambda one: one.stat().st_size)
    before = _identities(config_file, "source.model=model")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"changed")
    after = _identities(config_file, "source.model=model")
    assert before["filter"] == after["filter"] and before["images"][0] != after["images"][0]
    assert contents("images", load_config(config_file, ["source.model=nowhere"])) == {"source": None}


def test_a_stage_of_an_earlier_version_is_done_only_while_what_it_reads_is_older(config_file: Path) -> None:
    """It noted settings alone, so the time is what tells."""
    Path("read.txt").write_text("one")
    sets = ["prompts.grammar=read.txt", "evaluate.metadata=read.txt"]
    first = _identities(config_file, *sets)
    marker = {
        "state": "done",
        "note": "n",
        "seconds": 1.0,
        "peak_bytes": 1,
        "ended": "2026-01-01T00:00:00+00:00",
    }
    root = load_config(config_file).run.output
    for name in ("prompts", "filter", "images", "evaluation"):
        write_json(root / "stages" / f"{name}.json", {**marker, "identity": first[name][1]})
    os.utime("read.txt", (1_700_000_000, 1_700_000_000))  # before
    assert {name: len(known) for name, known in _identities(config_file, *sets).items()} == dict.fromkeys(
        first, 2
    )
    os.utime("read.txt", (1_790_000_000, 1_790_000_000))  # since
    assert {name for name, known in _identities(config_file, *sets).items() if len(known) == 1} == set(first)


def test_the_identity_of_a_run_of_the_first_version_is_known(config_file: Path) -> None:
    """Hashes that outlive versions: who adds a key gives its field the mark `later`."""
    sets = ["run.output=/run", "source.model=/model", "prompts.grammar=/grammar", "evaluate.metadata=/rows"]
    known = {name: old for name, (_, old) in _identities(config_file, *sets).items()}
    assert known == {
        "prompts": "f81f191d370bfa24",
        "filter": "48037340ffcd4650",
        "images": "e8c74096262f3ae2",
        "surgery": "ae69accaa536829a",
        "training": "20335ba9e6d666bd",
        "evaluation": "6053275739a777cf",
        "report": "3acf93261ff77c27",
    }


@pytest.mark.parametrize("damage", ["[run", "run = 5", "", "\x00"])
def test_a_damaged_config_of_a_run_is_written_again(config_file: Path, damage: str) -> None:
    config = load_config(config_file)
    paths = RunPaths(config.run.output)
    paths.root.mkdir()
    _claim(config, paths, update=False)
    written = paths.config.read_text()
    paths.config.write_text(damage)
    if damage not in ("run = 5", ""):
        check_unchanged(config, update=False)
        _claim(config, paths, update=False)
        assert paths.config.read_text() == written
    else:  # another config, for all that anybody can tell
        with pytest.raises(UserError):
            _claim(config, paths, update=False)


def test_odd_names_among_the_checkpoints_and_damaged_results_are_no_matter(config_file: Path) -> None:
    paths = RunPaths(load_config(config_file).run.output)
    for name in ("step-abc", "step-000012", "step-"):
        (paths.train / "checkpoints" / name).mkdir(parents=True)
    assert steps_done(paths.train) == 12
    paths.evaluation.mkdir()
    assert not _intact("evaluation", paths) and not _intact("report", paths)
    for content, whole in (("{", False), ("[]", False), ("5", False), (json.dumps({"l2p": {}}), True)):
        paths.results.write_text(content)
        assert _intact("evaluation", paths) == whole

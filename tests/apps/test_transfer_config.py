"""A config file is read strictly, and a dry run only reads."""

import json
from pathlib import Path

import pytest
from l2p_transfer.cli import main
from l2p_transfer.config import load_config, resolve_processes
from l2p_transfer.errors import TransferError
from l2p_transfer.planning.inputs import check_processes
from l2p_transfer.runner import differences, identities

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.fixture
def config_file(minimal_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The least that a config must say, in a directory of its own below the working directory."""
    monkeypatch.chdir(tmp_path)
    return minimal_config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    config = load_config(path)
    assert config.to_tables()["train"]["processes"]
    assert resolve_processes(config) >= 1


def test_paths_start_from_the_file_and_the_output_from_the_working_directory(config_file: Path) -> None:
    config = load_config(config_file, ["surgery.patch_size=32"])
    here = Path.cwd()
    assert config.source.model == here / "configs" / "source"
    assert config.run.output == here / "out"
    assert config.train.output == here / "out" / "train"
    assert config.surgery.patch_size == 32
    assert load_config(config_file, ["source.model=elsewhere"]).source.model == here / "elsewhere"


def test_the_corpus_cache_starts_where_other_paths_do(config_file: Path) -> None:
    here = Path.cwd()
    config_file.write_text(f'{config_file.read_text()}\n[train]\ncorpus_cache = "cache"\n')
    assert load_config(config_file).train.corpus_cache == here / "configs" / "cache"
    given = load_config(config_file, ["train.corpus_cache=cache"])
    assert given.train.corpus_cache == here / "cache"


def test_perceptual_features_start_where_other_paths_do(config_file: Path) -> None:
    (config_file.parent / "features").mkdir()
    table = '[train]\nperceptual_features = "features"\nperceptual_weight = 0.3\n'
    config_file.write_text(f"{config_file.read_text()}\n{table}")
    assert load_config(config_file).train.perceptual_features == Path.cwd() / "configs" / "features"
    with pytest.raises(TransferError, match=r"train\.corpus_cache is 3; it must be a path"):
        load_config(config_file, ["train.corpus_cache=3"])


def test_the_resolved_config_reads_back_to_itself(config_file: Path) -> None:
    import tomli_w

    config = load_config(config_file, ["images.seeds_per_prompt=3", "evaluate.noise_shift=2.5"])
    config_file.write_text(tomli_w.dumps(config.to_tables()))
    assert load_config(config_file) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.distil_guidance=3.0", "a transfer begins with one that cannot"),
        ("trian.steps=3", "unknown key 'trian'; did you mean 'train'?"),
        ("images.widht=64", "unknown key 'images.widht'; did you mean 'width'?"),
        ("train.stesp=3", "unknown key 'stesp'; did you mean 'steps'?"),
        ("filter.brand=true", "unknown key 'filter.brand'; did you mean 'brands'?"),
        ("images.width=72", "images.width 72 is not a multiple of surgery.patch_size 16; use 64 or 80"),
        ("images.width='wide'", "images.width is 'wide'; it must be a whole number"),
        ("source.dtype='int8'", "source.dtype is 'int8'; it must be one of 'auto', 'float32'"),
        ("surgery.head_channels=[16, 'x']", r"surgery.head_channels\[1\] is 'x'"),
        ("prompts.count=0", "prompts.count is 0; it must be at least 1"),
        ("prompts.engine='file'", "needs prompts.file"),
        ("train.model='x'", "train.model cannot be set"),
        ("train.batch_size=7", "^train.batch_size 7 does not divide over 2 processes; use 1 or 7 processes"),
        ("steps=3", "not of the form table.key=value"),
        ("images.buckets=[64]", "images.buckets is \\[64\\]; it must be a list of texts"),
        ("images.buckets=['64']", "images.buckets: size '64' is not of the form WIDTHxHEIGHT"),
        ("images.buckets=['64x72']", "images.buckets '64x72': height 72 is not a multiple .* use 64 or 80"),
        ("images.buckets=['64x64', '96x48']", "say at which one to evaluate: evaluate.width and"),
        ("evaluate.width=64", "evaluate.width is given without evaluate.height"),
        ("train.resolution=100", "train.resolution 100 is not a multiple of surgery.patch_size 16; use 96"),
        (
            "run.storage=s3:/bucket",
            "run.storage is 's3:/bucket'; it must be an address such as s3://bucket/run",
        ),
        ("train.steps=0", "^train.steps is 0; it must be at least 1"),
        ('train.export="best"', '^train.export = "best" needs validation_images > 0'),
        ("train.validation_images=20000", "20,000 images; use 19,998 or fewer, so that one prompt is left"),
        ("images.workers=-1", "images.workers is -1; it must be at least 0"),
    ],
)
def test_a_bad_setting_is_named_with_its_path(config_file: Path, override: str, message: str) -> None:
    overrides = [override, "train.processes=2"] if "batch_size" in override else [override]
    with pytest.raises(ValueError, match=message):
        load_config(config_file, overrides)


@pytest.mark.parametrize(
    "path", sorted(CONFIGS[0].parent.glob("ablations/*.toml")), ids=lambda path: path.stem
)
def test_the_config_of_an_ablation_is_known(path: Path) -> None:
    with pytest.raises(TransferError, match=r"is for l2p-ablate .*; give that command the file"):
        load_config(path)


def test_a_mistake_in_the_arguments_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["c.toml", "--utilisation", "35"], [], ["c.toml", "--utilization", "0.3"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        said = capsys.readouterr().err
        assert (stopped.value.code, said.count("\n"), said[:7]) == (2, 1, "error: "), said


def test_a_missing_key_and_a_missing_file_are_named(config_file: Path) -> None:
    with pytest.raises(TransferError, match="no config file"):
        load_config(config_file.with_name("none.toml"))
    config_file.write_text(config_file.read_text().replace('model = "source"', ""))
    with pytest.raises(TransferError, match=r"source\.model is missing"):
        load_config(config_file)
    config_file.write_text("[run\n")
    with pytest.raises(TransferError, match="is not valid TOML"):
        load_config(config_file)


def test_differences_name_both_values_and_skip_what_does_not_matter(config_file: Path) -> None:
    old = load_config(config_file).to_tables()
    new = load_config(config_file, ["train.steps=5", "images.workers=7"]).to_tables()
    assert [text for _, _, text in differences(old, new)] == ["train.steps: 1000 -> 5"]


def test_a_run_of_an_earlier_version_which_knew_fewer_settings_is_the_same(config_file: Path) -> None:
    old, new = load_config(config_file).to_tables(), load_config(config_file).to_tables()
    for table, key in (
        ("train", "weight_decay"),
        ("train", "betas"),
        ("filter", "brands"),
        ("images", "height"),
    ):
        del old[table][key]
    assert [text for _, _, text in differences(old, new)] == ["images.height: 1024 -> 64"]
    assert [text for _, _, text in differences(new, old)] == ["images.height: 64 -> 1024"]


def test_a_change_touches_its_stage_and_the_later_ones_only(config_file: Path) -> None:
    before, after = (
        {stage.name: identity for stage, identity in identities(load_config(config_file, overrides))}
        for overrides in ([], ["train.steps=5"])
    )
    assert [name for name in before if before[name] != after[name]] == ["training", "evaluation", "report"]


def test_a_dry_run_counts_and_writes_nothing(
    config_file: Path, untrained_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = set(Path.cwd().rglob("*"))
    overrides = ["--set", f"source.model={untrained_source}", "--set", "train.trainable=1"]
    assert main([str(config_file), "--dry-run", "--json", *overrides]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"]["tokens"] == 16
    assert plan["model"]["grid"] == [4, 4]
    assert 0 < plan["model"]["trainable"] < plan["model"]["trainable"] + plan["model"]["frozen"]
    assert plan["problems"] == []
    assert main([str(config_file), "--dry-run", *overrides]) == 0
    assert "Nothing was written." in capsys.readouterr().out
    assert set(Path.cwd().rglob("*")) == files


def test_a_dry_run_without_weights_counts_the_full_size(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The released model has 6,166,464,515 parameters, of which 2.548 B train."""
    overrides = [
        "source.family=z-image",
        "images.width=1024",
        "images.height=1024",
        "train.trainable=shallow",
    ]
    sets = [argument for override in overrides for argument in ("--set", override)]
    assert main([str(config_file), "--dry-run", "--json", *sets]) == 2
    out, err = capsys.readouterr()
    plan = json.loads(out)
    assert plan["model"]["trainable"] + plan["model"]["frozen"] == 6_166_464_515
    assert round(plan["model"]["trainable"] / 1e9, 3) == 2.548
    assert plan["model"]["tokens"] == 4096
    assert err.startswith("error: source.model")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "source.model configs/source does not exist; give a diffusers directory"),
        (
            ["source.pipeline_kwargs={guidance_scal = 1.0}"],
            "source.pipeline_kwargs.guidance_scal is no argument of the source's ZImagePipeline; did you mean"
            " guidance_scale?",
        ),
        (
            ["source.pipeline_kwargs={foo = 1}"],
            "ZImagePipeline; it takes num_inference_steps, sigmas, guidance_scale",
        ),
        (
            ["source.pipeline_kwargs={width = 64}"],
            "source.pipeline_kwargs.width is set for each image by the",
        ),
        (["source.model=configs"], "is no diffusers pipeline directory"),
        (["prompts.grammar=none.toml"], "none.toml"),
        (["prompts.engine=file", "prompts.file=empty.txt"], "empty.txt is empty"),
        (["evaluate.metadata=none.jsonl"], "no metadata file"),
        (["evaluate.detector=yolo"], "evaluate.detector is 'yolo'; there is scenes, coco"),
        (
            ["evaluate.detector=coco"],
            "evaluate.detector_model is missing; evaluate.color_model is missing; detector",
        ),
        (["prompts.engine=file", "prompts.file=none.txt"], "none.txt does not exist; give one that ends in"),
        (
            ["train.loss_weighting=error", "surgery.recipe=paper"],
            'train.loss_weighting is "error", which weighs by the closed form of the recipe "aligned", and',
        ),
        (
            ["train.polish_share=0.1", "surgery.recipe=paper"],
            "train.polish_share is 0.1, and this model takes no grain off a finished image",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(
    config_file: Path,
    untrained_source: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    Path("empty.txt").touch()
    if overrides and "source.model" not in overrides[0]:
        overrides = [f"source.model={untrained_source}", *overrides]
    sets = [argument for override in overrides for argument in ("--set", override)]
    assert main([str(config_file), *sets]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")
    assert message in err
    assert not Path("out").exists()


def test_more_processes_than_this_machines_gpus_are_refused_before_anything_is_painted(
    config_file: Path,
) -> None:
    config = load_config(config_file, ["train.processes=8", "train.batch_size=8"])
    check_processes(config, 8)
    check_processes(config, 0)  # a CPU takes any number
    with pytest.raises(
        TransferError, match=r"train.processes is 8, this machine has 4 GPUs; give 4 or fewer"
    ):
        check_processes(config, 4)
    there = ["train.processes=8", "train.batch_size=8", "cluster.address=auto"]
    check_processes(load_config(config_file, there), 4)
    check_processes(load_config(config_file, ["train.processes=auto"]), 1)


def test_an_unwritable_or_foreign_run_directory_is_refused(
    config_file: Path, untrained_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("precious")
    Path("foreign").mkdir()
    Path("foreign/notes.txt").write_text("precious")
    for output, message in (("file/run", "cannot write"), ("foreign", "is not empty (notes.txt)")):
        sets = ["--set", f"source.model={untrained_source}", "--set", f"run.output={output}"]
        assert main([str(config_file), *sets]) == 2
        assert message in capsys.readouterr().err
    assert Path("file").read_text() == Path("foreign/notes.txt").read_text() == "precious"

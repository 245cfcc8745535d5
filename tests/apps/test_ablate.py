"""An ablation for real on an untrained source, only short; and the verdict on made-up numbers."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_ablate.cli import main
from l2p_ablate.config import load_config
from l2p_ablate.data import render_prompt, restyled
from l2p_ablate.store import Store, held
from l2p_eval.report.arms import Claim, compare, spread, summarise, table
from l2p_mini.detector import ExactDetector
from l2p_mini.gaps import KINDS
from l2p_mini.paths import EVALUATION_METADATA, GAPS_METADATA, GRAMMAR, PIXEL_MODEL
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path for path in (ROOT / "configs" / "ablations").glob("*.toml") if path.stem != "base")
TINY = f"""
[ablation]
title = "Tiny"
paper = "none"
claim = "none"
seeds = [0]
[source]
model = "SOURCE"
num_inference_steps = 1
[data.source]
kind = "scenes"
grammar = "{GRAMMAR}"
prompts = 3
images_per_prompt = 1
[surgery]
head_channels = [8, 8, 8, 8]
initialisation = "default"
[train]
processes = 1
steps = 2
batch_size = 2
learning_rate = 1e-3
trainable = 1
precision = "fp32"
log_every = 1
sample_every = 0
tensorboard = false
[sampling]
num_inference_steps = 1
[evaluate]
metadata = "{EVALUATION_METADATA}"
prompts_per_tag = 1
reference = "scenes"
[[arm]]
name = "transfer"
[[arm]]
name = "scratch"
surgery.trunk = "random"
train.trainable = "full"
[[claim]]
better = "transfer"
worse = "scratch"
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, untrained_source: Path) -> Path:
    """The folder of a finished ablation; its config lies beside it."""
    folder = tmp_path_factory.mktemp("ablate")
    (folder / "tiny.toml").write_text(TINY.replace("SOURCE", str(untrained_source)))
    arguments = [str(folder / "tiny.toml"), "-o", str(folder / "out"), "--workers", "0"]
    assert main([*arguments, "--publish", str(folder / "published")]) == 0
    return folder


def test_an_ablation_leaves_numbers_pictures_and_the_command(finished: Path) -> None:
    results = json.loads((finished / "out" / "tiny" / "results.json").read_text())
    assert results["complete"] and not results["missing"]
    assert list(results["arms"]) == ["transfer", "scratch"]
    for arm in results["arms"].values():
        assert set(arm["metrics"]) == {"geneval", "frechet", "loss", "loss-seen", "patch-grid"}
        assert arm["metrics"]["patch-grid"]["mean"] > 0
        assert arm["metrics"]["loss"]["mean"] > 0 and arm["metrics"]["frechet"]["mean"] > 0
    assert results["provenance"]["command"].startswith("l2p-ablate ")
    assert results["comparisons"][0]["verdict"] == "undecided"  # one seed decides nothing
    assert [path.name for path in sorted((finished / "published").iterdir())] == [
        "tiny-pictures.png",
        "tiny.json",
        "tiny.png",
    ]


def run_folders(finished: Path) -> dict[str, Path]:
    results = json.loads((finished / "out" / "tiny" / "results.json").read_text())
    return {run["arm"]: finished / "out" / "shared" / "runs" / run["run"] for run in results["runs"]}


def test_from_scratch_keeps_nothing_of_the_source_but_transfer_does(
    finished: Path, untrained_source: Path
) -> None:
    source = load_file(next((untrained_source / "transformer").glob("*.safetensors")))
    trained = {
        arm: load_file(next((folder / "train/model/transformer").glob("*.safetensors")))
        for arm, folder in run_folders(finished).items()
    }
    name = "layers.2.attention.to_q.weight"  # a middle block
    assert torch.equal(trained["transfer"][f"trunk.{name}"], source[name])
    similarity = torch.cosine_similarity(
        trained["scratch"][f"trunk.{name}"].flatten(), source[name].flatten(), 0
    )
    assert abs(float(similarity)) < 0.1


def test_running_again_repeats_nothing_and_more_seeds_go_on(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(finished / "tiny.toml"), "-o", str(finished / "out"), "--workers", "0"]
    result = run_folders(finished)["transfer"] / "result.json"
    stamp = result.stat().st_mtime_ns
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("done before") == 2
    assert result.stat().st_mtime_ns == stamp
    assert main([*arguments, "--seeds", "2", "--budget", "0.001"]) == 3
    captured = capsys.readouterr()
    assert "the budget of 0.001 min is spent: 2 runs are missing" in captured.err
    assert "Partial" in captured.out
    assert not json.loads((finished / "out" / "tiny" / "results.json").read_text())["complete"]


def test_another_ablation_reads_the_runs_they_share_and_trains_the_others(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (finished / "tiny.toml").read_text()
    other = text.replace('name = "transfer"', 'name = "same"').replace(
        'better = "transfer"', 'better = "same"'
    )
    (finished / "other.toml").write_text(other.replace('trainable = "full"', "trainable = 0"))
    before = set((finished / "out/shared/runs").glob("[!.]*"))
    assert main([str(finished / "other.toml"), "-o", str(finished / "out"), "--workers", "0"]) == 0
    err = capsys.readouterr().err
    assert "same, seed 0: " in err and err.count("(done before)") == 1
    assert len(set((finished / "out/shared/runs").glob("[!.]*")) - before) == 1
    results = json.loads((finished / "out" / "other" / "results.json").read_text())
    assert [run["arm"] for run in results["runs"]] == ["same", "scratch"]
    assert results["runs"][0]["run"] == run_folders(finished)["transfer"].name


def test_a_run_that_another_command_is_busy_with_comes_last(finished: Path) -> None:
    text = (finished / "tiny.toml").read_text().replace("seeds = [0]", "seeds = [5]")
    (finished / "busy.toml").write_text(text)
    config = load_config(finished / "busy.toml")
    store = Store(root=finished / "out" / "shared", config=config)
    first, second = (store.run(arm, 5) for arm in config.arm)
    arguments = [str(finished / "busy.toml"), "-o", str(finished / "out"), "--workers", "0"]
    with held(first, wait=True):
        command = subprocess.Popen([sys.executable, "-m", "l2p_ablate.cli", *arguments])
        while not (second / "result.json").is_file():
            assert command.poll() is None
            time.sleep(0.2)
        shutil.copytree(second, first)  # the other command finishes
    assert command.wait(timeout=120) == 0


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_ablation_loads_with_three_seeds_and_a_budget(path: Path) -> None:
    config = load_config(path)
    assert len(config.ablation.seeds) >= 3
    assert config.ablation.budget_minutes <= 40
    assert config.source.model.is_dir() and config.claim
    assert all(data.grammar.is_file() for data in config.data.values())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[sampling]", "[smapling]", "unknown key 'smapling'; did you mean 'sampling'?"),
        (
            "num_inference_steps = 1",
            "num_inference_steps = 0",
            "num_inference_steps is 0; it must be at least 1",
        ),
        ('name = "scratch"', 'name = "transfer"', "names of their own"),
        ('worse = "scratch"', 'worse = "nobody"', "no arm 'nobody'; there is transfer, scratch"),
        ('name = "scratch"', 'name = "scratch"\ndata = "none"', "no [data.none]; there is source"),
        ("train.trainable", "train.trianable", "did you mean 'trainable'"),
        ("surgery.trunk", "surgery.trunks", "trunks"),
        (
            "head_channels = [8, 8, 8, 8]",
            "head_channels = [-1]",
            "head_channels[0] is -1; it must be at least 1",
        ),
        ("[ablation]", "[transfer]", "is no ablation: it has no [ablation] table"),
        ("[ablation]", "ablation = 5\n[other]", "is no ablation"),
        ("seeds = [0]", "seeds = []", "ablation.seeds is []; give one or more"),
        ("seeds = [0]", "seeds = [1, 2, 1]", "give one or more, each once"),
        ("seeds = [0]", "seeds = [-1]", "ablation.seeds[0] is -1"),
        ("seeds = [0]", f"seeds = [{2**64}]", "at least 0 and at most 2**63 - 1"),
        ("seeds = [0]", "budget_minutes = nan", "ablation.budget_minutes is nan; it must be a finite number"),
        ("seeds = [0]", "budget_minutes = -2", "ablation.budget_minutes is -2"),
        ("prompts = 3", "prompts = 1e3", "data.source.prompts is 1000.0; it must be a whole number"),
        ("prompts = 3", "prompts = true", "data.source.prompts is True"),
        ("prompts = 3", "blur = inf", "data.source.blur is inf; it must be a finite number"),
        ("prompts = 3", "hue_degrees = 1e9", "data.source.hue_degrees is"),
        ("prompts_per_tag = 1", f"seed = {10**23}", "evaluate.seed is"),
        ("prompts_per_tag = 1", "batch_size = 0", "evaluate.batch_size is 0"),
        ('worse = "scratch"', 'worse = "scratch"\nmargin = nan', "claim[0].margin is nan"),
        (
            'worse = "scratch"',
            'worse = "scratch"\nmetric = "fid"',
            "claim: no metric 'fid'; there is geneval,",
        ),
        ('name = "scratch"', 'name = "../x"', "becomes a folder"),
        (
            "train.trainable",
            "sampling.guidance_scale = inf\ntrain.trainable",
            "sampling.guidance_scale is inf",
        ),
        (
            "train.trainable",
            "surgery.patch_size = 0\ntrain.trainable",
            "arm scratch: surgery.patch_size is 0",
        ),
        ("[source]", "[source]\nguidance_scale = nan", "source.guidance_scale is nan"),
        ("[source]", "extends = 5\n[source]", "extends"),
    ],
)
def test_bad_configs_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(TINY.replace(old, new))
    assert main([str(path), "-o", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('surgery.initialisation = "magic"', "unknown initialisation 'magic'"),
        (
            "train.polish_share = 0.1",
            "arm scratch: train.polish_share is 0.1, and this model takes no grain off",
        ),
        (
            'train.loss_weighting = "error"',
            'arm scratch: train.loss_weighting is "error", which weighs by the',
        ),
    ],
)
def test_an_arm_that_cannot_be_built_or_trained_stops_the_command_before_it_starts(
    tmp_path: Path, untrained_source: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    path = tmp_path / "bad.toml"
    tables = TINY.replace("SOURCE", str(untrained_source))
    path.write_text(tables.replace('surgery.trunk = "random"', setting))
    assert main([str(path), "-o", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_arm_may_start_from_a_trained_model_of_a_smaller_patch(
    tmp_path: Path, untrained_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = f'[surgery]\nbase = "{PIXEL_MODEL}"\npatch_size = 32\n'
    enlarged = TINY.replace("SOURCE", str(untrained_source)).replace("[surgery]\n", table)
    enlarged = enlarged.replace("[8, 8, 8, 8]", "[8, 16, 32, 64, 128]").replace('"default"', '"auto"')
    enlarged = enlarged.replace('surgery.trunk = "random"\ntrain.trainable = "full"', "train.steps = 1")
    enlarged = enlarged.replace("trainable = 1\n", 'train_patterns = ["fine_head.*"]\n')
    config = tmp_path / "base.toml"
    config.write_text(enlarged)
    arguments = [str(config), "-o", str(tmp_path / "out"), "--workers", "0"]
    assert main([*arguments, "--json"]) == 0
    results = json.loads((tmp_path / "out" / "base" / "results.json").read_text())
    assert str(PIXEL_MODEL) not in json.dumps(results["config"])
    fine = sum(v.numel() for k, v in load_transformer(tmp_path, results).items() if "fine_head" in k)
    assert all(run["training"]["trainable_parameters"] == fine for run in results["runs"])
    store = Store(root=tmp_path / "out" / "shared", config=load_config(config))
    other = Store(root=store.root, config=load_config(config, {"surgery": {"base": untrained_source}}))
    assert store.run(store.config.arm[0], 0) != other.run(other.config.arm[0], 0)
    for old, new, wanted in (
        ("[8, 16, 32, 64, 128]", "[8, 8, 8, 8, 8]", "an aligned model keeps its head (16, 32, 64, 128)"),
        ("train.steps = 1", 'surgery.trunk = "random"', "would forget surgery.base; leave one out"),
        (str(PIXEL_MODEL), str(untrained_source), "is no L2P model directory"),
        (str(PIXEL_MODEL), "nowhere", "nowhere is no L2P model directory"),
    ):
        config.write_text(enlarged.replace(old, new))
        capsys.readouterr()
        assert main([*arguments, "--dry-run"]) == 2
        said = capsys.readouterr().err
        assert wanted in said and said.count("\n") == 1


def load_transformer(folder: Path, results: Any) -> dict[str, torch.Tensor]:
    """Return the weights of the first run."""
    run = folder / "out" / "shared" / "runs" / results["runs"][0]["run"] / "train" / "model" / "transformer"
    return load_file(next(run.glob("*.safetensors")))


def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["x.toml", "--seeds", "0"],
        ["x.toml", "--seeds", "nan"],
        ["x.toml", "--budget", "nan"],
        ["x.toml", "--budget", "-inf"],
        ["x.toml", "--workers", "-1"],
        ["x.toml", "--what"],
        [],
        ["no-such.toml"],
    ):
        try:
            code = main(arguments)
        except SystemExit as stop:  # the parser's
            code = int(stop.code or 0)
        assert code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines


def test_a_dry_run_refuses_what_the_run_would_and_writes_nothing(
    tmp_path: Path, untrained_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, path = TINY.replace("SOURCE", str(untrained_source)), tmp_path / "tiny.toml"
    path.write_text(tables)
    arguments = [str(path), "-o", str(tmp_path / "run"), "--dry-run"]
    assert main(arguments) == 0 and "Nothing was written" in capsys.readouterr().out
    row = {"tag": "colors", "include": [{"class": "cirlce", "count": 1}], "prompt": "a cirlce"}
    (tmp_path / "odd.jsonl").write_text(json.dumps(row) + "\n")
    for old, new, message in (
        (str(EVALUATION_METADATA), str(tmp_path / "odd.jsonl"), "did you mean 'circle'"),
        (str(EVALUATION_METADATA), str(tmp_path / "none.jsonl"), "no metadata file"),
        (str(GRAMMAR), str(tmp_path / "none.toml"), "none.toml"),
        ('surgery.trunk = "random"', "surgery.head_channels = [8, 8, 8, 8, 8, 8]", "beyond the patch of 16"),
        ('surgery.trunk = "random"', "surgery.patch_size = 24", "24"),
        (str(untrained_source), str(tmp_path / "nowhere"), "nowhere"),
    ):
        path.write_text(tables.replace(old, new))
        assert main(arguments) == 2, new
        err = capsys.readouterr().err.strip()
        assert len(err.splitlines()) == 1 and message in err, err
    assert not (tmp_path / "run").exists()


def test_a_run_is_named_by_the_content_of_all_that_it_depends_on(
    tmp_path: Path, untrained_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configs of the source, its middle weights, grammar, prompts, the renderer and the judges, one after
    another: each change gives other folders, and none of another's kind."""
    from l2p_ablate import store as module

    source = shutil.copytree(untrained_source, tmp_path / "source")
    for name, original in (("grammar.toml", GRAMMAR), ("metadata.jsonl", EVALUATION_METADATA)):
        shutil.copyfile(original, tmp_path / name)
    text = TINY.replace("SOURCE", str(source)).replace(str(GRAMMAR), str(tmp_path / "grammar.toml"))
    (tmp_path / "tiny.toml").write_text(
        text.replace(str(EVALUATION_METADATA), str(tmp_path / "metadata.jsonl"))
    )

    def names() -> dict[str, str]:
        for cached in (module._content, module.world, module._judges):
            cached.cache_clear()
        config = load_config(tmp_path / "tiny.toml")
        store = Store(root=tmp_path / "store", config=config)
        run = store.run(config.arm[0], 0).name
        return {"corpus": store.corpus("source").name, "reference": store.reference.name, "run": run}

    before = names()
    assert names() == before
    scheduler = source / "scheduler" / "scheduler_config.json"
    settings = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(settings | {"shift": 1.75}))
    assert {key for key, value in names().items() if value != before[key]} == {"run"}
    scheduler.write_text(json.dumps(settings | {}, indent=2))
    before = names()
    weights = next((source / "transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert {key for key, value in names().items() if value != before[key]} == {"run"}
    before = names()
    (tmp_path / "grammar.toml").write_text((tmp_path / "grammar.toml").read_text() + "\n# other\n")
    assert {key for key, value in names().items() if value != before[key]} == {"corpus", "run"}
    before = names()
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "metadata.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert {key for key, value in names().items() if value != before[key]} == {"reference", "run"}
    before = names()
    monkeypatch.setattr("l2p_mini.detector.ExactDetector.name", "another")
    assert {key for key, value in names().items() if value != before[key]} == {"run"}
    before = names()
    draw = render_prompt
    monkeypatch.setattr("l2p_ablate.data.render_prompt", lambda *a: restyled(draw(*a), hue_degrees=3, blur=0))
    assert {key for key, value in names().items() if value != before[key]} == {"corpus", "reference", "run"}


def pairs(*values: tuple[float, float]) -> dict[tuple[str, int], Any]:
    return {
        (arm, seed): {"metrics": {"geneval": value, "frechet": value}}
        for seed, both in enumerate(values)
        for arm, value in zip("ab", both, strict=True)
    }


def test_a_verdict_needs_every_pair_of_seeds_to_agree() -> None:
    claim = Claim(better="a", worse="b")
    assert compare(claim, "geneval", pairs((0.5, 0.4), (0.6, 0.5))).verdict == "holds"
    assert compare(claim, "geneval", pairs((0.4, 0.5), (0.5, 0.6))).verdict == "does not hold"
    assert compare(claim, "geneval", pairs((0.5, 0.4), (0.5, 0.6))).verdict == "undecided"
    assert compare(claim, "geneval", pairs((0.5, 0.4))).verdict == "undecided"
    assert compare(claim, "geneval", pairs((0.5, 0.4), (float("nan"), 0.5))).verdict == "undecided"
    lower = compare(claim, "frechet", pairs((50.0, 40.0), (60.0, 50.0)))  # less is better
    assert lower.verdict == "does not hold" and lower.mean == -10
    close = Claim(better="a", worse="b", kind="no worse", margin=0.03)
    assert compare(close, "geneval", pairs((0.48, 0.5), (0.6, 0.5))).verdict == "holds"
    assert compare(close, "geneval", pairs((0.45, 0.5), (0.4, 0.5))).verdict == "does not hold"


def test_a_metric_that_some_runs_lack_is_left_out_of_all() -> None:
    """Runs of before the patch grid was measured are finished; nothing trains again for it."""
    results = {
        (arm, 0): {
            "seed": 0,
            "metrics": {"geneval": 0.5, "frechet": 90.0, "loss": 0.1} | grid,
            "training": {
                "images_per_second": 9.0,
                "seconds": 250.4,
                "trainable_parameters": 5,
                "frozen_parameters": 6,
            },
        }
        for arm, grid in (("a", {"patch-grid": 0.7}), ("b", {}))
    }
    claim = Claim(better="a", worse="b")
    summary = summarise({"a": "A", "b": "B"}, [0], [claim], "geneval", results)
    assert set(summary["arms"]["a"]["metrics"]) == {"geneval", "frechet", "loss"}
    assert "| A | 0.500 | 90.0 | 0.100 | 250 | 1 |" in table(summary)
    assert compare(claim, "patch-grid", results).differences == ()


def test_the_spread_is_the_sample_deviation() -> None:
    assert spread([1.0, 2.0, 3.0]).deviation == pytest.approx(1.0)
    assert spread([1.0]).deviation is None


def test_the_other_house_style_shows_what_the_prompt_says() -> None:
    """Its pictures are judged right as often as plain renders are, and they do look different."""
    prompt = "a red circle left of a blue square on a beige background"
    image = render_prompt(prompt, 0, 64)
    other = restyled(image, hue_degrees=12, blur=0.7)
    assert other.tobytes() != image.tobytes()
    seen = {(found.color, found.label) for found in ExactDetector().detect(other) if found.confidence > 0.3}
    assert seen == {("red", "circle"), ("blue", "square")}
    assert render_prompt(prompt, 0, 64).tobytes() == image.tobytes()


def test_checkpoints_that_are_kept_and_kinds_of_prompts_have_scores_of_their_own(
    tmp_path: Path, untrained_source: Path
) -> None:
    text = TINY.replace("SOURCE", str(untrained_source)).replace(str(EVALUATION_METADATA), str(GAPS_METADATA))
    text = text.replace("steps = 2\n", "steps = 3\ncheckpoint_every = 1\nkeep_checkpoints = 2\n")
    claim = '[[claim]]\nbetter = "transfer"\nworse = "scratch"\nmetric = "geneval:shape"\n'
    (tmp_path / "kinds.toml").write_text(text.replace("prompts_per_tag = 1", "prompts_per_tag = 4") + claim)
    arguments = [str(tmp_path / "kinds.toml"), "-o", str(tmp_path / "out"), "--workers", "0"]
    assert main([*arguments, "--publish", str(tmp_path / "published")]) == 0
    results = json.loads((tmp_path / "out/kinds/results.json").read_text())
    kinds = {f"geneval:{kind}" for kind in KINDS}
    for run in results["runs"]:
        assert [at["step"] for at in run["history"]] == [2, 3]
        assert run["history"][1]["metrics"] == run["metrics"] != run["history"][0]["metrics"]
        assert kinds < set(run["metrics"])
        assert not (tmp_path / "out/shared/runs" / run["run"] / "earlier").exists()
    assert results["reference"]["metrics"] == dict.fromkeys(["geneval", *kinds], 1.0)  # renders are right
    assert [one["metric"] for one in results["comparisons"]] == ["geneval", "geneval:shape"]
    assert (tmp_path / "published/kinds-steps.png").is_file()
    assert "| reference: scenes | 1.000 |" in table(results)


def test_a_run_is_another_where_auto_makes_another_model(
    untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from l2p_arch.surgery import recipes

    config = tmp_path / "tiny.toml"
    config.write_text(TINY.replace("SOURCE", str(untrained_source)))
    aligned = load_config(config, {"surgery": {"recipe": "aligned", "initialisation": "auto"}})

    def name() -> str:
        return Store(root=tmp_path, config=aligned).run(aligned.arm[0], 0).name

    before = name()
    assert name() == before
    with monkeypatch.context() as later:
        later.setattr(recipes, "POLISH", (0.3,))
        assert name() != before
    with monkeypatch.context() as later:
        later.setattr(recipes, "resolve_start", lambda start: "default")
        assert name() != before

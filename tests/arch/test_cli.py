"""`l2p-arch`: what the functions do, on a command line that answers at once where no tensor is made."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from l2p_arch import identify, save_delta, weights_hash
from l2p_arch.cli import main
from l2p_arch.cli import parser as build_parser
from PIL import Image
from safetensors.torch import load_file

README = Path(__file__).parents[2] / "packages/l2p-arch/README.md"
SMALL = ["--head-channels", "8", "8", "16", "16"]


@pytest.fixture
def model(untrained_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["convert", str(untrained_source), str(tmp_path / "model"), *SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["initialisation"] == "kaiming+detail"
    assert report["summary"].startswith("z-image, patch 16: inherited")
    return tmp_path / "model"


def test_a_model_goes_out_and_comes_back_bit_by_bit(
    model: Path, untrained_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, back = tmp_path / "one.safetensors", tmp_path / "back"
    assert main(["export", str(model), str(file)]) == 0
    assert main(["import", str(file), str(untrained_source), str(back)]) == 0
    assert "from the published 1k layout" in capsys.readouterr().out
    assert weights_hash(back) == weights_hash(model)
    assert main(["upscale", str(model), str(tmp_path / "larger"), "--patch-size", "32"]) == 0
    assert "patch 32" in capsys.readouterr().out

    name = "detailer_head.out_conv.bias"
    save_delta({name: torch.ones(3)}, model, tmp_path / "delta.safetensors")
    assert main(["merge", str(model), str(tmp_path / "delta.safetensors"), str(tmp_path / "merged")]) == 0
    weights = load_file(tmp_path / "merged/transformer/diffusion_pytorch_model.safetensors")
    assert torch.equal(weights[name], torch.ones(3))


def test_what_a_path_holds_is_told_without_torch(model: Path, untrained_source: Path, tmp_path: Path) -> None:
    script = "import sys; from l2p_arch.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", script, "identify", str(untrained_source)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == ["a latent pipeline of the family z-image; convert makes a pixel-space one of it", "False"]
    assert identify(model) == "an L2P model directory (z-image, patch 16)"
    weights = model / "transformer/diffusion_pytorch_model.safetensors"
    assert identify(weights) == "the weights of an L2P model directory; give that directory"
    assert identify(tmp_path).startswith("a directory, but no diffusers pipeline")
    (tmp_path / "other/transformer").mkdir(parents=True)
    (tmp_path / "other/model_index.json").write_text('{"_class_name": "WuerstchenPipeline"}')
    assert "without a transformer" in identify(tmp_path / "other")
    (tmp_path / "other/transformer/config.json").write_text("{}")
    assert identify(tmp_path / "other") == "a WuerstchenPipeline directory, which is of no known family"


def test_the_new_ends_are_fitted_to_a_folder_of_pictures(
    untrained_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        noise = torch.randint(0, 256, (50 + number, 90, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / f"pictures/{number}.png")
    command = ["convert", str(untrained_source), str(tmp_path / "out"), *SMALL, "--image-size", "64"]
    command += ["--images", str(tmp_path / "pictures"), "--json"]
    assert main([*command, "--image-count", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (
        report["initialisation"] == "fitted+kaiming+detail"
        and "latent_variance_explained" in report["measures"]
    )
    (tmp_path / "pictures/0.png").write_text("no picture")
    assert main([*command, "--overwrite"]) == 2
    assert "0.png cannot be read as a picture" in capsys.readouterr().err


def test_what_is_read_is_never_overwritten(
    model: Path, untrained_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "run"
    inside.mkdir()
    file, delta = inside / "one.safetensors", inside / "delta.safetensors"
    assert main(["export", str(model), str(file)]) == 0
    assert main(["import", str(file), str(untrained_source), str(inside), "--overwrite"]) == 2
    save_delta({"detailer_head.out_conv.bias": torch.ones(3)}, model, delta)
    assert main(["merge", str(model), str(delta), str(inside), "--overwrite"]) == 2
    assert capsys.readouterr().err.count("holds the source") == 2
    assert {path.name for path in inside.iterdir()} == {"one.safetensors", "one.md", "delta.safetensors"}
    assert main(["export", str(model), str(inside / "weights.md")]) == 2
    assert "is the name of a model card" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("convert nowhere out", "nowhere is not a directory"),
        ("convert SOURCE MODEL", "already exists"),
        ("convert MODEL out", "already a pixel-space model"),
        ("convert SOURCE out --patch-size 0", "patch size 0"),
        ("convert SOURCE out --images nowhere", "nowhere holds no pictures"),
        ("convert SOURCE out --images SOURCE --image-count 0", "--image-count 0 and --image-size 512"),
        ("convert SOURCE out --initialisation fitted", "needs calibration_images"),
        ("identify nowhere", "there is no nowhere"),
        ("upscale SOURCE out", "no L2P model directory"),
        ("upscale MODEL out --patch-size 24", "no larger multiple"),
        ("import nowhere SOURCE out", "is not a file"),
        ("export SOURCE out.safetensors", "no L2P model directory: its transformer's config lacks family"),
        ("merge MODEL nowhere out", "is not a file"),
        ("export SOURCE/model_index.json out.safetensors", "Not a directory"),
        ("export MODEL MODEL/README.safetensors", "README.md is part of what is read"),
        ("export MODEL MODEL", "is a directory; give the name of a file"),
        ("export MODEL MODEL/transformer/diffusion_pytorch_model.safetensors --overwrite", "part of what is"),
        ("convert SOURCE SOURCE/transformer --overwrite", "transformer, which is read"),
        ("convert SOURCE SOURCE/tokenizer/out", "tokenizer, which is read"),
        ("convert SOURCE out --seed 99999999999999999999", "has more than 64 bits"),
        ("convert SOURCE MODEL/README.md --overwrite", "is no directory of its own"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    model: Path,
    untrained_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = command.replace("SOURCE", str(untrained_source)).replace("MODEL", str(model)).split()
    assert main(words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and complaint in line
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_paths_that_the_terminal_cannot_show_are_no_failure(model: Path, tmp_path: Path) -> None:
    script = "import sys; from l2p_arch.cli import main; arguments = sys.argv[1:]; first = main(arguments); "
    script += "sys.exit(first or main([*arguments, '--json', '--overwrite']))"
    command = [sys.executable, "-c", script, "export", str(model), str(tmp_path / "Bildüng-画.safetensors")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    readable, machine = ended.stdout.splitlines()
    assert "Bild\\xfcng-\\u753b" in readable
    assert "Bildüng-画" in json.loads(machine)["summary"]


def test_a_model_is_named_in_reports_wherever_one_stands(
    untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--Tongyi-MAI--Z-Image-Turbo/snapshots/0123abcd"
    shutil.copytree(untrained_source, snapshot)
    assert main(["convert", str(snapshot), str(tmp_path / "one"), *SMALL]) == 0
    assert "| start | Tongyi-MAI/Z-Image-Turbo, by weight surgery" in (tmp_path / "one/README.md").read_text()
    monkeypatch.chdir(untrained_source)
    assert main(["convert", ".", str(tmp_path / "two"), *SMALL]) == 0
    assert json.loads((tmp_path / "two/surgery_report.json").read_text())["source"] == untrained_source.name


def test_the_heads_of_all_public_layouts_can_be_asked_for(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    widths = ["--head-channels", "3", "16", "16", "16", "16", "16", "--head-decoder-floor", "16"]
    words = [str(model), str(tmp_path / "10k"), "--patch-size", "160", *widths, "--head-bottleneck", "24"]
    assert main(["upscale", *words, "--initialisation", "default"]) == 0
    assert main(["export", str(tmp_path / "10k"), str(tmp_path / "one.safetensors")]) == 0
    assert "in the published 10k layout" in capsys.readouterr().out


def test_the_readmes_commands_are_known() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    commands = [shlex.split(line, comments=True) for line in "\n".join(blocks).splitlines()]
    ours = [words[1:] for words in commands if words and words[0] == "l2p-arch"]
    assert len(ours) >= 6
    for words in ours:
        build_parser().parse_args(words)


@pytest.mark.parametrize("words", [["--help"], ["export", "--help"]])
def test_help_that_cannot_be_written_is_an_error(words: list[str]) -> None:
    code = "import sys; from l2p_arch.cli import command_line; sys.exit(command_line())"
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", code, *words], stdout=full, stderr=-1, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: cannot write the result: No space left on device")

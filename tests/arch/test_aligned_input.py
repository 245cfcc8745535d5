"""What a user can get wrong about the aligned recipe ends in one line and exit code 2, and leaves nothing."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from l2p_arch import convert, save_delta
from l2p_arch.cli import main
from PIL import Image
from safetensors.torch import load_file, save_file

HEAD = ["8", "8", "16", "16"]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def pictures(folder: Path, count: int, *, one_colour: bool = False) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    for number in range(count):
        colours = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=generator).numpy()
        picture = Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC)
        picture = Image.new("RGB", (64, 64), (90, 120, 30)) if one_colour else picture
        picture.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "all", 40)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no VAE", "has no vae, which the aligned recipe is fitted with; add it"),
        ("no images", "needs calibration_images.*--images"),
        ("one colour", "of one colour"),
        ("few", r"16 tokens of calibration images are too few.*give more images"),
        ("NaN", "NaN or infinity; load it in float32"),
        ("linear head", "needs a Detailer Head, and head_channels is empty"),
        ("velocity", 'prediction = "velocity" belongs to recipe = "paper"'),
        ("start", "belongs to the paper's recipe"),
        ("decoder", "unknown decoder 'pca'; known: auto"),
        ("paper's gates", 'initialisation "gated" filters a velocity'),
    ],
)
def test_a_source_or_call_that_cannot_have_the_recipe(
    case: str,
    words: str,
    untrained_source: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = untrained_source
    if case in ("no VAE", "NaN"):
        source = Path(shutil.copytree(untrained_source, tmp_path / "source"))
    if case == "no VAE":
        shutil.rmtree(source / "vae")
    if case == "NaN":
        file = source / "vae/diffusion_pytorch_model.safetensors"
        save_file({name: value * float("nan") for name, value in load_file(file).items()}, file)
    folder = {
        "one colour": lambda: pictures(tmp_path / "pictures", 30, one_colour=True),
        "few": lambda: pictures(tmp_path / "pictures", 1),
    }.get(case, lambda: images)()
    options = {
        "velocity": ["--prediction", "velocity"],
        "start": ["--initialisation", "fitted+kaiming+gated"],
        "decoder": ["--decoder", "pca"],
        "paper's gates": ["--recipe", "paper", "--prediction", "x_0", "--initialisation", "gated"],
    }.get(case, [])
    command = ["convert", str(source), str(tmp_path / "out"), "--recipe", "aligned", *options]
    command += ["--head-channels", *([] if case == "linear head" else HEAD)]
    command += [] if case == "no images" else ["--images", str(folder), "--image-size", "64"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert not (tmp_path / "out").exists()


def test_a_delta_of_one_recipe_does_not_merge_with_a_base_of_the_other(
    untrained_source: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(untrained_source), str(tmp_path / "aligned"), "--recipe", "aligned"]
    options = ["--decoder", "neighbours", "--images", str(images), "--image-size", "64"]
    assert main([*command, *options, "--head-channels", *HEAD]) == 0
    convert(untrained_source, tmp_path / "paper", head_channels=[int(width) for width in HEAD])
    for own, other in (("paper", "aligned"), ("aligned", "paper")):
        name = "detailer_head.out_conv.weight"
        trained = {name: torch.ones_like(load_file(tmp_path / own / WEIGHTS)[name])}
        save_delta(trained, tmp_path / own, tmp_path / f"{own}.safetensors")
        capsys.readouterr()
        merge = ["merge", str(tmp_path / other), str(tmp_path / f"{own}.safetensors"), str(tmp_path / "out")]
        assert main(merge) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"a model of the {own} recipe" in error and f"one of the {other} recipe" in error
        assert not (tmp_path / "out").exists()

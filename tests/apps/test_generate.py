"""l2p-generate: every way to ask for a picture, and the picture that knows how it was made."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from l2p_generate.cli import main
from l2p_generate.recipe import read_recipe
from PIL import Image

PROMPT = "two red circles on a gray background"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_from_image_paints_the_same_pixels(untrained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(untrained_run)]
    assert (
        main([*model, PROMPT, "--seed", "7", "--steps", "2", "--negative-prompt", "a ring", "-o", "a.png"])
        == 0
    )
    assert main([*model, "--from-image", "a.png", "-o", "b.png"]) == 0
    assert "identical to a.png" in capsys.readouterr().err
    assert _pixels("a.png") == _pixels("b.png")
    assert read_recipe(Path("a.png")) == read_recipe(Path("b.png"))
    assert main([*model, "--from-image", "a.png", "--seed", "8", "-o", "c.png"]) == 0
    assert "identical" not in capsys.readouterr().err
    assert _pixels("a.png") != _pixels("c.png")
    assert read_recipe(Path("c.png")).negative_prompt == "a ring"


def test_what_saves_memory_changes_no_image(untrained_run: Path) -> None:
    model = ["--model", str(untrained_run), PROMPT, "--seed", "7", "--steps", "2", "--height", "128"]
    assert main([*model, "-o", "a.png"]) == 0
    assert main([*model, "--cpu-offload", "--tile", "32", "-o", "b.png"]) == 0
    difference = [abs(one - two) for one, two in zip(_pixels("a.png"), _pixels("b.png"), strict=True)]
    assert max(difference) <= 1
    assert read_recipe(Path("a.png")).sampling == read_recipe(Path("b.png")).sampling


def test_guidance_for_a_distilled_model_is_refused_by_another(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(untrained_run), PROMPT, "--steps", "1"]
    assert main([*model, "--distilled-guidance", "3.5"]) == 2
    assert "is for models that embed their guidance, and this z-image does not" in capsys.readouterr().err


def test_an_image_of_a_batch_is_painted_again_to_the_bit(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(untrained_run / "model")]
    assert main([*model, PROMPT, "a ring", "-n", "2", "--batch-size", "3", "-o", "a.png"]) == 0
    assert main([*model, "--from-image", "a-0001.png", "-o", "b.png"]) == 0
    assert "identical to a-0001.png" in capsys.readouterr().err
    assert (read_recipe(Path("b.png")).prompt, read_recipe(Path("b.png")).seed) == (PROMPT, 43)
    assert read_recipe(Path("a-0003.png")).batch == ()  # alone in the last batch


def test_image_to_image_starts_from_the_picture(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(untrained_run)]
    Image.new("RGB", (96, 96), (10, 200, 30)).save("green.png")
    assert main([*model, PROMPT, "--image", "green.png", "--strength", "0", "-o", "kept.png"]) == 0
    assert Image.open("kept.png").getcolors() == [(64 * 64, (10, 200, 30))]
    assert main([*model, PROMPT, "--image", "green.png", "--strength", "0.7", "-o", "a.png"]) == 0
    Path("green.png").rename("moved.png")
    assert main([*model, "--from-image", "a.png"]) == 2
    assert "green.png does not exist" in capsys.readouterr().err
    assert main([*model, "--from-image", "a.png", "--image", "moved.png", "-o", "b.png"]) == 0
    assert "identical to a.png" in capsys.readouterr().err


def test_prompts_come_from_arguments_files_and_stdin(
    untrained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["a ring", "", json.dumps({"prompt": "a cross", "seed": 9})]
    Path("prompts.txt").write_text("\n".join(rows))
    common = ["--model", str(untrained_run), "--steps", "1", "--json"]
    assert main([*common, PROMPT, "--prompts", "prompts.txt"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [(row["prompt"], row["seed"]) for row in images] == [(PROMPT, 42), ("a ring", 42), ("a cross", 9)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a ring\n"))
    assert main([*common, "--prompts", "-"]) == 0
    assert [row["prompt"] for row in json.loads(capsys.readouterr().out)["images"]] == ["a ring"]


def test_a_contact_sheet_holds_every_picture_and_its_parameters(untrained_run: Path) -> None:
    arguments = ["--model", str(untrained_run), "--steps", "1", "--sheet", "-n", "3", PROMPT, "a ring"]
    assert main([*arguments, "-o", "new/sheet.png"]) == 0
    sheet = Image.open("new/sheet.png")
    assert sheet.size == (12 + 3 * 204, 12 + 2 * (192 + 44 + 12))
    assert sheet.text["parameters-0005"].startswith(
        "a ring\nSteps: 1, Sampler: Euler, CFG scale: 1.5, Seed: 44"
    )


def test_a_published_single_file_needs_only_the_components(
    untrained_run: Path,
    untrained_source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from l2p_arch import export_public

    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    export_public(untrained_run / "model", "model-1k-merge.safetensors")
    size = ["--height", "64", "--width", "64", "--steps", "3", "--guidance", "1.5", "--shift", "3"]
    file = ["--model", "model-1k-merge.safetensors", PROMPT, *size]
    assert main(file) == 2
    assert "brings no text encoder; add --components" in capsys.readouterr().err
    assert main([*file, "--components", str(untrained_source), "-o", "file.png"]) == 0
    assert "importing the single file, once" in capsys.readouterr().err
    assert main([*file, "--components", str(untrained_source), "-o", "again.png"]) == 0
    assert "importing" not in capsys.readouterr().err
    assert main(["--model", str(untrained_run), PROMPT, "-o", "directory.png"]) == 0
    assert _pixels("file.png") == _pixels("again.png") == _pixels("directory.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to paint: give a prompt"),
        (["a ring", "--strength", "0.5"], "--strength is for image-to-image"),
        (["a ring", "--image", "none.png"], "--image none.png does not exist"),
        (["--prompts", "empty.txt"], "holds no prompt"),
        (["--prompts", "none.txt"], "--prompts none.txt does not exist; give a file with one prompt a line"),
        (["--prompts", "bad.jsonl"], 'bad.jsonl, line 2 needs a text "prompt"'),
        (["--from-image", "plain.png"], "carries no recipe"),
        (["--from-image", "empty.txt"], "is not a readable image"),
        (["--from-image", "other.png"], "was made by other weights"),
        (["a ring", "--device", "cuda:77"], "--device cuda:77 cannot be used"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    untrained_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    from l2p_generate.files import write_png
    from l2p_generate.model import Sampling
    from l2p_generate.recipe import Recipe

    Path("empty.txt").touch()
    Path("bad.jsonl").write_text('{"prompt": "a ring"}\n{"text": "a ring"}\n')
    plain = Image.new("RGB", (64, 64))
    plain.save("plain.png")
    stranger = Recipe(prompt="a ring", seed=1, sampling=Sampling(height=64, width=64), weights="0" * 16)
    write_png(plain, Path("other.png"), stranger.chunks())
    assert main(["--model", str(untrained_run), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert not Path("out.png").exists()


def test_weights_that_are_not_for_this_user_are_one_line(
    untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(untrained_run / "model", tmp_path / "model")
    weights = next((tmp_path / "model" / "transformer").glob("*.safetensors"))
    weights.chmod(0o000)
    if os.geteuid() == 0:  # whom no mode keeps out: the system's answer to anybody else stands in
        path_open = Path.open

        def refused(path: Path, *args: Any, **options: Any) -> Any:
            if path == weights:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return path_open(path, *args, **options)

        monkeypatch.setattr(Path, "open", refused)
    assert main(["--model", str(tmp_path / "model"), "a ring"]) == 2
    said = f"error: cannot open {weights}: Permission denied; its owner can allow it, with chmod\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("arguments", [["--model", "m", "a ring", "--steps", "0"], ["serve"], ["a ring"]])
def test_a_mistake_in_the_arguments_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n"), said[:7]) == (2, 1, "error: "), said


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['l2p-generate', '--help']\n"
        "from l2p_generate.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'gradio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "[]"

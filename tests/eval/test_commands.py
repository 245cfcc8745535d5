"""The commands that need a user's model, with tiny random ones."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from l2p_evaluate.cli import main
from PIL import Image

CSV = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,\
question_natural_language
0,a red dog,k,1,0,entity,whole,entity - whole (dog),is there a dog
7,a dog,k,1,0,entity,whole,entity - whole (dog),is there a dog
7,a dog,k,2,1,attribute,color,"attribute - color (dog, red)",is there a red dog
"""


@pytest.fixture
def prompts(tmp_path: Path, scenes: list[Path]) -> Path:
    path = tmp_path / "prompts.csv"
    names = [scene.name for scene in scenes]
    pl.DataFrame({"file_name": names, "text": ["a photo of a cat"] * len(names)}).write_csv(path)
    return path


@pytest.mark.parametrize(
    ("command", "positions", "name"), [("clip", 77, "CLIP"), ("long-clip", 248, "Long-CLIP")]
)
def test_clip_scores_by_command(
    command: str,
    positions: int,
    name: str,
    write_clip: Callable[[Path, int], Path],
    tmp_path: Path,
    prompts: Path,
    scenes: list[Path],
) -> None:
    model, out = write_clip(tmp_path / "clip", positions), tmp_path / "out"
    arguments = ["--images", str(scenes[0].parent), "--prompts", str(prompts), "--clip-model", str(model)]
    assert main([command, *arguments, "-o", str(out)]) == 0
    read = json.loads((out / "results.json").read_text())
    entry = read["entries"][0]
    assert 0 <= entry["values"][name] <= 100
    assert entry["definition"]["count"] == 6
    assert entry["definition"]["prompts"].startswith("prompts.csv sha256 ")
    assert bool(read["paper"]["rows"]) is (command == "long-clip")  # the paper has no plain CLIP score


def test_fid_and_inception_score_by_command(
    inception_weights: Path, tmp_path: Path, scenes: list[Path]
) -> None:
    folder, weights = str(scenes[0].parent), ["--weights", str(inception_weights)]
    assert (
        main(["fid", "--images", folder, "--reference", folder, *weights, "-o", str(tmp_path / "o/fid")]) == 0
    )
    read = json.loads((tmp_path / "o/fid/results.json").read_text())
    assert read["entries"][0]["values"]["FD-inception-v3"] == pytest.approx(0, abs=1e-5)
    assert read["paper"]["rows"]["L2P"] == 33.46
    assert (
        main(["inception-score", "--images", folder, *weights, "--splits", "2", "-o", str(tmp_path / "o/is")])
        == 0
    )
    read = json.loads((tmp_path / "o/is/results.json").read_text())
    assert read["entries"][0]["values"]["IS-inception-v3"] >= 1


def test_dpg_by_command_asks_once_and_keeps_partial_answers(
    blip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    (tmp_path / "dpg.csv").write_text(CSV)
    Image.new("RGB", (64, 64), "red").save(images / "0.png")
    command = ["dpg", "--images", str(images), "--csv", str(tmp_path / "dpg.csv"), "--judge-model", str(blip)]
    command += ["--mode", "fixed", "--grid", "32", "-o", str(out)]
    assert main(command) == 2  # the second image is missing
    assert "has no 7.png" in capsys.readouterr().err
    read = json.loads((out / "results.json").read_text())
    assert not read["complete"]
    assert read["entries"][0]["definition"]["n"] == "4 images of 1 prompts"
    Image.new("RGB", (64, 64), "blue").save(images / "7.png")
    (images / "0.png").unlink()  # its answers are kept: nobody looks at it again
    assert main(command) == 0
    read = json.loads((out / "results.json").read_text())
    assert read["complete"]
    assert read["entries"][0]["definition"]["n"] == "8 images of 2 prompts"
    assert read["entries"][0]["definition"]["judge"] == f"{blip.name} (transformers)"

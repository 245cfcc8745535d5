"""The commands that need a user's model, with tiny random ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from l2p_eval.dpg.judges import VqaJudge
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
    assert len(entry["definition"]["weights_sha256"]) == 64
    assert (
        "resizes to shortest_edge 32, cuts the middle height 32 width 32"
        in (entry["definition"]["preprocessing"])
    )
    assert entry["definition"]["metric version"].startswith("l2p-eval ")
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
    definition = read["entries"][0]["definition"]
    assert f"{scenes[0].parent.name}, sha256 of its 6 files " in definition["reference"]
    assert (definition["count"], definition["patches"]) == (6, "none: whole images")
    assert "to 299 x 299" in definition["preprocessing"] and len(definition["weights_sha256"]) == 64
    assert (
        main(["inception-score", "--images", folder, *weights, "--splits", "2", "-o", str(tmp_path / "o/is")])
        == 0
    )
    read = json.loads((tmp_path / "o/is/results.json").read_text())
    assert read["entries"][0]["values"]["IS-inception-v3"] >= 1


def test_dpg_by_command_asks_once_and_keeps_partial_answers(
    blip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer = VqaJudge.answer
    monkeypatch.setattr(VqaJudge, "answer", lambda self, *a: asked.append(a[1]) or answer(self, *a))
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
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "7.png")  # four crops that differ
    before = len(asked)
    assert main(command) == 0
    assert asked[before:] == 4 * ["is there a dog", "is there a red dog"]  # of 7; those of 0 are kept
    assert main(command) == 0 and len(asked) == before + 8
    read = json.loads((out / "results.json").read_text())
    assert read["complete"]
    assert read["entries"][0]["definition"]["n"] == "8 images of 2 prompts"
    definition = read["entries"][0]["definition"]
    assert definition["judge"] == f"{blip.name} (transformers)"
    assert len(definition["judge's weights sha256"]) == 64 and "sha256" in definition["csv"]
    assert definition["patches"] == "2 x 2 grids of 32 px"
    assert "resizes to height 32 width 32" in definition["resize"]
    (images / "0.png").unlink()
    assert main([*command[:-1], str(tmp_path / "again")]) == 2
    assert "has no 0.png" in capsys.readouterr().err
    Image.new("RGB", (96, 96), "red").save(images / "0.png")
    assert main([*command[:-1], str(tmp_path / "again")]) == 2
    assert "0.png: the grid is (96, 96), 4 images of 32 px need (64, 64)" in capsys.readouterr().err


def test_networks_that_answer_nan_are_refused(
    blip: Path,
    write_clip: Callable[[Path, int], Path],
    inception_weights: Path,
    with_nan: Callable[[Path], Path],
    tmp_path: Path,
    prompts: Path,
    scenes: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = ["--images", str(scenes[0].parent), "-o", str(tmp_path / "out")]
    clip = with_nan(write_clip(tmp_path / "clip", 77))
    assert main(["clip", *images, "--prompts", str(prompts), "--clip-model", str(clip)]) == 2
    assert "the embeddings hold NaN or infinity" in capsys.readouterr().err
    stored = torch.load(inception_weights, weights_only=True)
    stored = {
        name: torch.full_like(value, torch.nan) if value.is_floating_point() else value
        for name, value in stored.items()
    }
    torch.save(stored, tmp_path / "nan.pth")
    weights = ["--weights", str(tmp_path / "nan.pth")]
    assert main(["fid", *images, "--reference", str(scenes[0].parent), *weights]) == 2
    assert "features hold NaN or infinity" in capsys.readouterr().err
    assert main(["inception-score", *images, *weights, "--splits", "2"]) == 2
    assert "the logits hold NaN or infinity" in capsys.readouterr().err
    (tmp_path / "dpg.csv").write_text(CSV)
    shutil.rmtree(clip)
    command = ["dpg", *images, "--csv", str(tmp_path / "dpg.csv"), "--judge-model", str(with_nan(blip))]
    assert main(command) == 2
    assert "nan (transformers) answers NaN" in capsys.readouterr().err


def test_weights_without_a_part_of_the_network_are_refused(
    write_clip: Callable[[Path, int], Path],
    tmp_path: Path,
    prompts: Path,
    scenes: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """transformers would fill it with random numbers and warn."""
    from safetensors.torch import load_file, save_file

    model = write_clip(tmp_path / "clip", 77)
    path = model / "model.safetensors"
    command = ["clip", "--images", str(scenes[0].parent), "--prompts", str(prompts)]
    command += ["--clip-model", str(model), "-o", str(tmp_path / "out")]
    kept = {name: value for name, value in load_file(path).items() if not name.startswith("text_model")}
    save_file(kept, path, metadata={"format": "pt"})
    assert main(command) == 2
    assert "holds no CLIP: its weights lack text_model." in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:100])
    assert main(command) == 2
    assert "holds no CLIP: " in capsys.readouterr().err

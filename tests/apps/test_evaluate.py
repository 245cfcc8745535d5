"""`l2p-evaluate` on folders and on an untrained model: numbers, report, resumption, and bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from l2p_eval.efficiency.comparison import Row, table
from l2p_eval.geneval import parse_row
from l2p_eval.layout import write_image, write_prompts
from l2p_eval.metric_options import COMMANDS
from l2p_eval.scores import METRICS
from l2p_evaluate.cli import main
from l2p_mini.grammar import draw_scene, geneval_row, parse
from l2p_mini.world import render
from PIL import Image

PROMPTS = [
    "a red circle",
    "a blue square",
    "two green rings",
    "a red circle left of a blue square",
]


def scenes(folder: Path, shown: list[str], samples: int = 2) -> Path:
    """GenEval's layout for `PROMPTS`, painted by the renderer with what `shown` says."""
    import random

    write_prompts(folder, [parse_row(geneval_row(prompt)) for prompt in PROMPTS])
    for index, prompt in enumerate(shown):
        for sample in range(samples):
            scene = draw_scene(parse(prompt), random.Random(10 * index + sample))
            write_image(render(scene), folder, index, sample)
    return folder


def results(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command with exit code 2 prints."""
    capsys.readouterr()
    assert main([*arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()  # a slow machine tells its progress before
    assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines), lines
    return lines[-1]


def test_folders_are_compared_beside_the_papers_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = scenes(tmp_path / "right", PROMPTS)
    wrong = scenes(tmp_path / "wrong", [*PROMPTS[:3], "a red circle right of a blue square"])
    out = tmp_path / "out"
    command = [
        "geneval",
        "--detector",
        "scenes",
        "--images",
        str(right),
        "--images",
        f"ours={wrong}",
        "-o",
        str(out),
    ]
    assert main(command) == 0
    read = results(out)
    assert read["complete"]
    assert [entry["name"] for entry in read["entries"]] == ["right", "ours"]
    assert [entry["values"]["overall"] for entry in read["entries"]] == [1.0, pytest.approx(2 / 3)]
    definition = read["entries"][1]["definition"]
    assert definition["n"] == "8 images of 4 prompts"
    assert definition["detector"] == "l2p-mini-exact-1" and definition["resize"] == "none"
    assert len(definition["prompts sha256"]) == 64 and definition["metric version"].startswith("l2p-eval ")
    assert "left of" in read["entries"][1]["images"][-1]["reason"]
    assert read["paper"]["rows"]["L2P"] == 0.76
    assert read["provenance"]["command"].startswith("l2p-evaluate geneval")
    page = (out / "report.html").read_text()
    assert "Where ours fails" in page and "Where right fails" not in page
    assert "From the paper, for context only" in page and "Z-Image-Turbo" in page
    assert page.count("data:image/png;base64,") >= 10
    assert "ours" in capsys.readouterr().out


def test_what_was_scored_before_a_broken_image_is_kept_and_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = scenes(tmp_path / "x", PROMPTS), tmp_path / "out"
    path = folder / "00002/samples/0001.png"
    path.write_bytes(path.read_bytes()[:60])
    err = error_of(capsys, "geneval", "--detector", "scenes", "--images", str(folder), "-o", str(out))
    assert "00002/samples/0001.png is not a readable image" in err
    read = results(out)
    assert not read["complete"] and not read["entries"][0]["complete"]
    assert read["entries"][0]["scores"]["image_count"] == 5
    assert "partial" in (out / "report.html").read_text()


def test_an_entry_that_fails_keeps_those_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, out = scenes(tmp_path / "good", PROMPTS), scenes(tmp_path / "bad", PROMPTS), tmp_path / "out"
    shutil.rmtree(bad / "00001")
    both = ["--images", str(good), "--images", str(bad)]
    assert "bad: " in error_of(capsys, "geneval", "--detector", "scenes", *both, "-o", str(out))
    read = results(out)
    assert [entry["name"] for entry in read["entries"]] == ["good"]
    assert not read["complete"] and "folder 00001 is missing" in read["problem"]


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scenes(tmp_path / "x", PROMPTS)
    images = ["--images", str(folder), "-o", str(tmp_path / "out")]
    geneval, fid = ["geneval", "--detector", "scenes"], ["fid", "--features", "efficientnet-lite0"]
    cases = [
        ([*geneval, "--images", "nowhere"], "no image folder nowhere"),
        ([*geneval], "nothing to score"),
        ([*geneval, *images, "--images", str(folder)], "two entries are called 'x'"),
        ([*geneval, "--model", "nowhere"], "--model nowhere does not exist"),
        (["geneval", *images], "--detector-model is missing"),
        (["fid", *images, "--reference", str(folder)], "give --weights FILE"),
        ([*fid, *images, "--reference", str(folder), "--patches", "many"], "is not SIZExCOUNT"),
        ([*fid, *images, "--reference", str(folder), "--patches", "99x2"], "smaller than a patch of 99 px"),
        ([*fid, *images, "--reference", str(tmp_path / "none")], "no image folder"),
        (["inception-score", *images, "--weights", "none.pth"], "no Inception weights none.pth"),
        (["clip", *images, "--clip-model", str(tmp_path)], "no config.json"),
        (["dpg", *images, "--csv", "none.csv", "--judge-model", "x"], "no DPG-Bench file none.csv"),
        (["efficiency"], "nothing to do"),
        (["efficiency", "--count", "z-image", "--sizes", "1000"], "no published head for 1000 px"),
    ]
    for arguments, message in cases:
        assert message in error_of(capsys, *arguments), arguments
    (folder / "00003/samples/0000.png").unlink()
    assert "image 0000.png is missing" in error_of(capsys, *geneval, *images)
    (folder / "00003/metadata.jsonl").write_text('{"tag": "smell", "include": [], "prompt": "x"}')
    assert "unknown tag 'smell'" in error_of(capsys, *geneval, *images)


def test_frechet_and_diversity_need_no_files(tmp_path: Path) -> None:
    ours, other = scenes(tmp_path / "ours", PROMPTS), scenes(tmp_path / "other", PROMPTS[::-1])
    features = ["--features", "efficientnet-lite0"]
    same, out = tmp_path / "same", tmp_path / "out"
    assert main(["fid", *features, "--images", str(ours), "--reference", str(ours), "-o", str(same)]) == 0
    assert results(same)["entries"][0]["values"]["FD-efficientnet-lite0"] == pytest.approx(0, abs=1e-4)
    patches = ["--patches", "32x2"]
    assert (
        main(["fid", *features, *patches, "--images", str(other), "--reference", str(ours), "-o", str(out)])
        == 0
    )
    entry = results(out)["entries"][0]
    assert entry["values"]["FD-efficientnet-lite0-patch-32x2-seed42"] > 1
    assert entry["definition"]["rank_deficient"] is True and len(entry["definition"]["weights_sha256"]) == 64
    assert main(["diversity", *features, "--images", str(ours), "-o", str(tmp_path / "div")]) == 0
    entry = results(tmp_path / "div")["entries"][0]
    assert 0 < entry["values"]["diversity-efficientnet-lite0"] < 1
    assert entry["definition"]["images_per_prompt"] == [2, 2]


def test_the_patch_grid_of_two_folders_stands_side_by_side(tmp_path: Path) -> None:
    """Scenes as they are, and with every second patch of 8 px made brighter."""
    clean, gridded = (scenes(tmp_path / name, PROMPTS) for name in ("clean", "gridded"))
    for path in gridded.rglob("*.png"):
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
        rows, columns = np.indices(pixels.shape[:2]) // 8
        Image.fromarray(np.where(((rows + columns) % 2 == 0)[..., None], pixels, pixels // 2)).save(path)
    out = str(tmp_path / "out")
    command = ["patch-grid", "--images", str(clean), "--images", str(gridded), "--patch-size", "8", "-o", out]
    assert main(command) == 0
    read = results(tmp_path / "out")
    one, other = (entry["values"]["patch-grid-8"] for entry in read["entries"])
    assert other > 5 * one
    assert read["entries"][0]["definition"]["patch_size"] == 8 and not read["paper"]["rows"]


def test_a_model_paints_resumes_and_refuses_other_settings(
    tmp_path: Path, untrained_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text("\n".join(json.dumps(geneval_row(prompt)) for prompt in PROMPTS[:2]) + "\n")
    out = tmp_path / "out"
    command = [
        "geneval",
        "--detector",
        "scenes",
        "--model",
        f"source={untrained_source}",
        "--metadata",
        str(metadata),
    ]
    command += ["--height", "64", "--width", "64", "--steps", "1", "--workers", "0", "-o", str(out)]
    assert main([*command, "--max-sequence-length", "32"]) == 0
    entry = results(out)["entries"][0]
    assert entry["scores"]["image_count"] == 2
    assert entry["definition"]["sampling: num_inference_steps"] == 1
    assert entry["definition"]["metadata"].startswith("metadata.jsonl sha256 ")
    painted = out / "images/source/00001/samples/0000.png"
    stamp = painted.stat().st_mtime_ns
    assert main([*command, "--max-sequence-length", "32"]) == 0
    assert painted.stat().st_mtime_ns == stamp
    # One that is on the device by turns paints the same: the folder is another, the pixels are not.
    away = [str(tmp_path / "away") if word == str(out) else word for word in command]
    assert main([*away, "--max-sequence-length", "32", "--cpu-offload"]) == 0
    again = tmp_path / "away" / painted.relative_to(out)
    assert Image.open(again).tobytes() == Image.open(painted).tobytes()
    err = error_of(capsys, *command, "--max-sequence-length", "16")
    assert "max_sequence_length: 32 -> 16" in err


def test_processes_and_ray_paint_the_images_that_this_process_paints(
    tmp_path: Path, untrained_source: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"name": f"{i}", "prompt": p}) + "\n" for i, p in enumerate(PROMPTS[:2]))
    )
    common = ["diversity", "--features", "efficientnet-lite0", "--model", f"source={untrained_source}"]
    common += [
        "--prompts",
        str(prompts),
        "--images-per-prompt",
        "2",
        "--batch-size",
        "2",
        "--dtype",
        "float32",
    ]
    common += ["--height", "64", "--width", "64", "--steps", "1", "--max-sequence-length", "32"]
    painted = {}
    for name, how in {
        "here": ["--workers", "0"],
        "processes": ["--workers", "1"],
        "ray": ["--workers", "1", "--executor", "ray"],
    }.items():
        assert main([*common, *how, "-o", str(tmp_path / name)]) == 0
        painted[name] = [path.read_bytes() for path in sorted((tmp_path / name / "images").rglob("*.png"))]
    assert len(painted["here"]) == 4
    assert painted["here"] == painted["processes"] == painted["ray"]


def test_the_table_of_efficiency_says_what_is_saved_and_what_is_the_papers() -> None:
    source = Row(
        size=1024, model="source", unit="s", step=2.0, decode=1.0, image=5.0, memory_gb=10.0, details={}
    )
    l2p = Row(size=1024, model="L2P", unit="s", step=0.5, decode=0.0, image=1.0, memory_gb=None, details={})
    text = table([source, l2p], steps=2)
    assert "| 1024 | *less than the source* | 75.0 % |  | 80.0 % |  |" in text
    assert "not measured here" in text


def test_every_metric_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*arguments])
        assert stop.value.code == 0
        return capsys.readouterr().out

    text = printed("--help")
    assert all(name in text for name in (*METRICS, "efficiency"))
    assert list(COMMANDS) == list(METRICS)
    for name in (*METRICS, "efficiency"):
        assert f"l2p-evaluate {name}" in printed(name, "--help")
    assert printed("--version").startswith("l2p-evaluate ")

"""What a user can get wrong with `l2p-evaluate`: one line says so, exit code 2, and what was scored stays."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from l2p_eval.geneval import parse_row
from l2p_eval.layout import write_image, write_prompts
from l2p_evaluate.cli import main
from PIL import Image

ROW = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"}
GENEVAL = ["geneval", "--detector", "scenes"]
FID = ["fid", "--features", "efficientnet-lite0"]
DPG_HEADER = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
DPG_ROW = "0,a dog,1,0,entity - whole (dog),is there a dog?\n"


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder in GenEval's layout: three prompts with two plain images each."""

    def write(name: str, size: int = 64) -> Path:
        folder = tmp_path / name
        write_prompts(folder, [parse_row(ROW | {"prompt": f"a circle {number}"}) for number in range(3)])
        for index in range(3):
            for sample in range(2):
                write_image(
                    Image.new("RGB", (size, size), (40 * index, 90 * sample, 0)), folder, index, sample
                )
        return folder

    return write


@pytest.fixture
def error_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a command prints which ends with exit code 2."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments), "-o", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines), lines
        return lines[-1]

    return run


def results(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / "00000"), "folder 00000 is missing (the next one is 00001)"),
        (lambda f: (f / "00001").rename(f / "00007"), "folder 00001 is missing (the next one is 00002)"),
        (lambda f: (f / "00001/samples/0000.png").unlink(), "image 0000.png is missing"),
        (lambda f: shutil.rmtree(f / "00002/samples"), "has no images; it needs 0000.png"),
        (lambda f: [shutil.rmtree(path) for path in f.iterdir()], "has no numbered prompt folders"),
        (lambda f: (f / "00001/metadata.jsonl").unlink(), "metadata.jsonl is missing"),
        (lambda f: (f / "00001/metadata.jsonl").write_text('{"tag": "sing'), "not one JSON object"),
        (lambda f: (f / "00001/metadata.jsonl").write_bytes(b"\xff\xfe\x00"), "not one JSON object"),
        (
            lambda f: (f / "00001/metadata.jsonl").write_text(json.dumps(ROW | {"tag": "smell"})),
            "unknown tag 'smell'; GenEval has single_object",
        ),
        (lambda f: (f / "00000/samples/0000.png").write_bytes(b"PNG"), "is not a readable image"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    write_folder: Callable[..., Path],
    error_of: Callable[..., str],
    spoil: Callable[[Path], Any],
    message: str,
) -> None:
    folder = write_folder("images")
    spoil(folder)
    assert message in error_of(*GENEVAL, "--images", folder)


def test_metadata_must_be_that_of_the_folder(
    write_folder: Callable[..., Path], error_of: Callable[..., str], tmp_path: Path
) -> None:
    images = ["--images", write_folder("images")]
    for content, message in (
        (json.dumps(ROW), "prompt 00000 is 'a circle 0' and 'a circle' in --metadata"),
        (json.dumps(ROW | {"prompt": "a circle 0"}), "prompt 00001 is 'a circle 1' and 'nothing'"),
        (json.dumps(ROW)[:30], "metadata.jsonl:1: not JSON"),
        ("\n", "has no prompts"),
    ):
        (tmp_path / "metadata.jsonl").write_text(content)
        assert message in error_of(*GENEVAL, *images, "--metadata", tmp_path / "metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe")
    assert "is no text in UTF-8" in error_of(*GENEVAL, *images, "--metadata", tmp_path / "metadata.jsonl")


def test_sets_that_cannot_be_compared_are_refused(
    write_folder: Callable[..., Path], error_of: Callable[..., str], tmp_path: Path
) -> None:
    small, large = write_folder("small"), write_folder("large", 96)
    (tmp_path / "none").mkdir()
    for arguments, message in (
        ([small, "--reference", large, "--patches", "32x2"], "is 64x64, its reference 96x96"),
        ([small, "--reference", small, "--patches", "99x2"], "smaller than a patch of 99 px"),
        ([tmp_path / "none", "--reference", small], "has no images"),
        ([small, "--reference", tmp_path / "none"], "has no images"),
    ):
        assert message in error_of(*FID, "--images", *arguments)
    broken = large / "00001/samples/0001.png"
    broken.write_bytes(broken.read_bytes()[:50])
    assert "0001.png is not a readable image" in error_of(*FID, "--images", large, "--reference", small)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,text\n", "has no rows"),
        ("file,words\n0.png,a dog\n", "has the columns file, words; wanted one of"),
        ("file_name,text\n0.png,a dog\n1.p", "row 2 has no name or no text (a truncated file?)"),
        ("file_name,text\n0.png,a dog\n", "has no image of '0.png'"),
        ("file_name,text\n../../0.png,a dog\n", "leaves the folder"),
    ],
)
def test_a_bad_prompt_file_is_named(
    write_folder: Callable[..., Path],
    error_of: Callable[..., str],
    tmp_path: Path,
    content: str,
    message: str,
) -> None:
    folder, prompts = write_folder("images"), tmp_path / "prompts.csv"
    prompts.write_text(content)
    assert message in error_of(*FID, "--images", folder, "--reference", folder, "--prompts", prompts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DPG_HEADER, "has no questions"),
        (DPG_HEADER.replace("dependency", "depends") + DPG_ROW, "lacks the columns dependency"),
        (DPG_HEADER + DPG_ROW[:30], "csv:2: the row is incomplete (a truncated file?)"),
        (DPG_HEADER + DPG_ROW[:-5], "csv:2: the row is incomplete (a truncated file?)"),
        (DPG_HEADER + DPG_ROW * 2, "csv:3: 0 has two questions 1"),
        (DPG_HEADER + DPG_ROW.replace(",1,0,", ",1,5,"), "depends on 5, which is not there"),
        (DPG_HEADER + DPG_ROW.replace("dog?", "d\xf6g?"), "is no CSV in UTF-8"),
    ],
)
def test_a_bad_dpg_file_is_named(
    write_folder: Callable[..., Path],
    error_of: Callable[..., str],
    tmp_path: Path,
    content: str,
    message: str,
) -> None:
    path = tmp_path / "dpg.csv"
    path.write_text(content, encoding="latin-1")
    judge = ["--judge-server", "http://127.0.0.1:9", "--judge-name", "none"]
    assert message in error_of("dpg", "--images", write_folder("images"), "--csv", path, *judge)


def test_a_model_that_cannot_be_loaded_or_cannot_paint_is_refused(
    untrained_source: Path, error_of: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps(ROW))
    common = [*GENEVAL, "--metadata", tmp_path / "metadata.jsonl", "--workers", "0", "--steps", "1"]
    message = error_of(*common, "--model", f"odd={untrained_source}", "--height", "60", "--width", "64")
    assert "cannot paint this" in message and "60" in message
    damaged = tmp_path / "damaged"
    shutil.copytree(untrained_source, damaged)
    weights = next((damaged / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    message = error_of(*common, "--model", damaged)  # before anything is painted, and the file by name
    assert f"--model {weights} is not a safetensors file, or is cut off" in message
    assert not (tmp_path / "out" / "images" / "damaged").exists()


@pytest.mark.parametrize(
    ("metric", "option", "value"),
    [
        *[
            ("geneval", option, value)
            for option in ("--workers", "--seed")
            for value in ("-1", "nan", "1e3", "x")
        ],
        *[("geneval", "--seed", value) for value in (str(2**63), str(2**64), "10" * 40)],
        *[
            ("dpg", option, "0")
            for option in ("--batch-size", "--steps", "--height", "--images-per-prompt", "--grid")
        ],
        *[("fid", option, str(10**9)) for option in ("--width", "--steps", "--batch-size", "--workers")],
        *[("clip", "--guidance", value) for value in ("nan", "inf", "-inf", "-0.5", "1e9")],
        *[("diversity", "--shift", value) for value in ("nan", "inf", "0", "-3")],
        *[("long-clip", "--max-sequence-length", value) for value in ("0", "-5", "2.5")],
        *[("inception-score", "--splits", value) for value in ("0", "inf")],
        ("fid", "--patch-seed", "-1"),
        ("diversity", "--size", "0"),
        ("patch-grid", "--patch-size", "-16"),
        *[("efficiency", "--steps", value) for value in ("1", "0", "nan")],
        *[("efficiency", option, "0") for option in ("--repeats", "--sizes")],
    ],
)
def test_a_number_out_of_range_is_refused_in_one_line(
    metric: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([metric, option, value])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: argument {option}: "), lines


@pytest.mark.parametrize("text", ["0x3", "299x-1", "nanx2", "299x20x3", f"{10**9}x2"])
def test_patches_out_of_range_are_refused(
    write_folder: Callable[..., Path], error_of: Callable[..., str], text: str
) -> None:
    folder = write_folder("images")
    assert "is not SIZExCOUNT" in error_of(*FID, "--images", folder, "--reference", folder, "--patches", text)


def test_seeds_that_would_leave_what_generators_take_are_refused_before_painting(
    untrained_source: Path, error_of: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps(ROW))
    model = ["--model", untrained_source, "--metadata", tmp_path / "metadata.jsonl"]
    assert "leave what generators take" in error_of(
        *GENEVAL, *model, "--seed", str(2**63 - 2), "--images-per-prompt", "3"
    )


def test_results_of_an_interrupted_comparison_are_marked(
    write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from l2p_eval.evaluation import Evaluation, Scored, evaluate
    from l2p_eval.scores import geneval
    from l2p_mini.detector import ExactDetector

    entries = [Scored(name=name, folder=write_folder(name)) for name in ("first", "second")]
    judge = lambda pictures, progress: geneval(pictures, ExactDetector(), progress=progress)  # noqa: E731

    def interrupt(done: int, total: int, what: str) -> None:
        if what == "judging second":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Evaluation(metric="geneval", entries=entries, score=judge), tmp_path / "out", {}, interrupt)
    read = results(tmp_path / "out")
    assert [entry["name"] for entry in read["entries"]] == ["first"]
    assert not read["complete"] and read["problem"] == "1 of 2 entries are scored"
    assert "1 of 2 entries are scored" in (tmp_path / "out/report.html").read_text()


def test_a_folder_has_as_many_images_a_prompt_as_are_asked_for(
    write_folder: Callable[..., Path], error_of: Callable[..., str], tmp_path: Path
) -> None:
    command = [*GENEVAL, "--images", str(write_folder("a")), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert main([*command, "--images-per-prompt", "2"]) == 0
    assert "has 2 images, 4 are wanted" in error_of(*command, "--images-per-prompt", "4")


def test_a_distance_on_other_features_has_no_fid_beside_it(
    write_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder("a")
    assert main([*FID, "--reference", str(folder), "--images", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert results(tmp_path / "out")["paper"]["rows"] == {}
    assert "rests on fewer images than its features are wide" in capsys.readouterr().err


def test_efficiency_counts_nothing_where_it_may_not_write(
    error_of: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    assert "cannot write to" in error_of("efficiency", "--count", "z-image", "--sizes", "1024")

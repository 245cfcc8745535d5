"""`l2p-evaluate` on damaged models, files and machines: one line, never a score of something else."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_eval.geneval import parse_row
from l2p_eval.layout import write_image, write_prompts
from l2p_evaluate.cli import main
from PIL import Image
from safetensors.torch import load_file, save_file

ROW = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"}
GENEVAL = ["geneval", "--detector", "scenes"]


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """One gray picture in GenEval's layout."""
    write_prompts(tmp_path / "images", [parse_row(ROW)])
    write_image(Image.new("RGB", (64, 64), "gray"), tmp_path / "images", 0, 0)
    return tmp_path / "images"


def error_of(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The last line of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines), lines
    return lines[-1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_model_that_computes_no_numbers_gets_no_score(
    part: str,
    value: float,
    tmp_path: Path,
    metadata: Path,
    untrained_source: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One tensor of a source's transformer or decoder: its pictures would be black, or white and black."""
    model = shutil.copytree(untrained_source, tmp_path / "model")
    path = next((model / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = next(key for key in reversed(sorted(tensors)) if key.endswith("weight") and "encoder" not in key)
    save_file(tensors | {name: torch.full_like(tensors[name], value)}, path, metadata={"format": "pt"})
    command = [*GENEVAL, "--model", model, "--metadata", metadata, "--workers", "0", "--steps", "1"]
    sizes = ["--height", "64", "--width", "64", "--max-sequence-length", "16", "--dtype", "float32"]
    assert "NaN or infinity" in error_of(capsys, *command, *sizes, "-o", tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "not JSON"),
        (b'{"tag": ' + b"1" * 5000 + b"}", "not JSON"),
        (json.dumps(ROW).encode() + b"\n\x80\n", "is no text in UTF-8"),
        (json.dumps(ROW | {"include": [{"class": "cricle", "count": 1}]}).encode(), "did you mean 'circle'"),
        (
            json.dumps(ROW | {"include": [{"class": "ring", "count": 1, "color": "rde"}]}).encode(),
            "did you mean 'red'",
        ),
        (
            json.dumps(ROW | {"exclude": [{"class": "circle", "count": 1}]}).encode(),
            "no image can meet the prompt 'a circle'",
        ),
    ],
)
def test_metadata_that_cannot_be_judged_is_refused_before_a_model_is_loaded(
    content: bytes,
    message: str,
    metadata: Path,
    tmp_path: Path,
    untrained_source: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metadata.write_bytes(content)
    command = [*GENEVAL, "--model", untrained_source, "--metadata", metadata, "-o", tmp_path / "out"]
    assert message in error_of(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_metadata_with_a_byte_order_mark_and_windows_line_ends_reads(
    metadata: Path, images: Path, tmp_path: Path
) -> None:
    metadata.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n")
    command = [*GENEVAL, "--images", images, "--metadata", metadata, "-o", tmp_path / "out"]
    assert main([str(word) for word in command]) == 0


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "its owner can allow it"),
        (errno.EIO, "the file may be whole"),
        (errno.ESTALE, "mount it again"),
    ],
)
def test_what_cannot_be_read_is_not_called_damaged(
    number: int,
    remedy: str,
    metadata: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Permissions and broken devices, for metadata and for pictures: nobody is told to make them again."""
    read = Path.read_bytes
    for broken in ("metadata.jsonl", "0000.png"):

        def refuse(path: Path, broken: str = broken) -> bytes:
            if path.name == broken:
                raise OSError(number, os.strerror(number), str(path))
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", refuse)
        command = [*GENEVAL, "--images", images, "--metadata", metadata, "-o", tmp_path / "out"]
        message = error_of(capsys, *command)
        assert broken in message and remedy in message
        assert not any(word in message for word in ("generate it again", "make it again", "UTF-8", "delete"))


def test_a_full_disk_says_so_and_leaves_nothing_half(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "results.json" in path.name:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    message = error_of(capsys, *GENEVAL, "--images", images, "-o", tmp_path / "out")
    assert "No space left on device; free some space" in message and "choose another" not in message
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "path", ["x" * 300, "a\0b", "images/00000/metadata.jsonl/below"], ids=["long", "nul", "below a file"]
)
def test_odd_paths_are_one_line(
    path: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error_of(capsys, *GENEVAL, "--images", images, "-o", tmp_path / path)
    error_of(capsys, *GENEVAL, "--images", tmp_path / path, "-o", tmp_path / "out")
    error_of(capsys, *GENEVAL, "--images", images, "--metadata", tmp_path / path, "-o", tmp_path / "out")
    error_of(capsys, *GENEVAL, "--model", tmp_path / path, "--metadata", tmp_path / path)


def run(command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A shell line in which $EVALUATE is the command."""
    environment = os.environ | {"EVALUATE": f"{sys.executable} -m l2p_evaluate.cli"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=environment, **options
    )


def test_readers_that_leave_and_disks_that_are_full_are_no_bugs(images: Path, tmp_path: Path) -> None:
    command = f"$EVALUATE geneval --detector scenes --images {images} -o {tmp_path}/out"
    early = run(f"{command} | head -0")
    assert early.returncode == 0 and "Traceback" not in early.stderr
    full = run(f"{command} --json > /dev/full")
    assert full.returncode == 2 and "Traceback" not in full.stderr
    assert full.stderr.strip().splitlines()[-1].startswith("error: cannot write the result")


@pytest.mark.parametrize("module", ["l2p_eval.scores", "torch"])
def test_an_interrupt_while_modules_are_imported_is_one_line(module: str, images: Path) -> None:
    """Ctrl-C in the first second: the moment at which a module is looked for."""
    code = f"""
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from l2p_evaluate.cli import main
folder = {str(images)!r}
sys.exit(main(["fid", "--features", "efficientnet-lite0", "--images", folder, "--reference", folder]))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 130
    assert ended.stderr.strip() == "interrupted; run the same command again to go on"

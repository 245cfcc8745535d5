"""A conversion appears complete or not at all; what a killed one leaves, the next one mends."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import l2p_arch.public_models as public_models
import l2p_arch.surgery.convert as surgery
import pytest
from l2p_arch import ArchError, L2PTransformer, convert, export_public

HEAD = (8, 8, 16, 16)


@pytest.mark.parametrize(
    "moment",
    [
        "l2p_arch.files.tensor_writing.copy_range",
        "l2p_arch.surgery.convert.new_tensors",
        "l2p_arch.surgery.convert.copy_components",
        "l2p_arch.surgery.convert.write_json",
    ],
)
def test_an_interrupted_surgery_leaves_nothing_and_can_be_repeated(
    untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(untrained_source, tmp_path / "out", head_channels=HEAD)
    assert not list(tmp_path.iterdir())
    convert(untrained_source, tmp_path / "out", head_channels=HEAD)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_surgery_left_is_removed_by_the_next_and_nothing_else_is(
    untrained_source: Path, tmp_path: Path
) -> None:
    kill_at_the_end = (
        "import os, signal, sys, l2p_arch.surgery.convert as surgery\n"
        "surgery.write_model_card = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "surgery.convert(sys.argv[1], sys.argv[2], head_channels=(8, 8, 16, 16))\n"
    )
    out = tmp_path / "out"
    killed = subprocess.Popen([sys.executable, "-c", kill_at_the_end, str(untrained_source), str(out)])
    assert killed.wait() == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.endswith(f"-{killed.pid}")
    assert (left / "transformer").is_dir()
    stem = left.name.removesuffix(str(killed.pid))
    stay = [
        f"{stem}{os.getppid()}",  # a living process's
        f".out.partial-another-host-{killed.pid}",
        f"{stem.replace('.out.', '.outer.')}{killed.pid}",
        f"{stem}{killed.pid}x",
    ]
    for name in stay:
        (tmp_path / name).mkdir()
    convert(untrained_source, out, head_channels=HEAD)
    assert {path.name for path in tmp_path.iterdir()} == {"out", *stay}


@pytest.mark.parametrize(
    "moment", ["l2p_arch.files.tensor_writing.copy_range", "l2p_arch.files.components.copy_file"]
)
@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        (errno.ENOSPC, "out: No space left on device; free some"),
        (errno.EFBIG, r"out: File too large; raise the limit \(ulimit -f\)"),
    ],
)
def test_a_full_disk_is_one_line(
    untrained_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    code: int,
    complaint: str,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(moment, full)
    with pytest.raises(ArchError, match=complaint):
        convert(untrained_source, tmp_path / "out", head_channels=HEAD)
    assert not list(tmp_path.iterdir())


def test_what_came_meanwhile_is_not_replaced_unasked(
    untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write_card = tmp_path / "out", surgery.write_model_card

    def someone_else(*args: Any, **options: Any) -> Path:
        out.mkdir()
        (out / "precious.txt").write_text("keep")
        return write_card(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(surgery, "write_model_card", someone_else)
        with pytest.raises(ArchError, match="out already exists"):
            convert(untrained_source, out, head_channels=HEAD)
    assert (out / "precious.txt").read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    convert(untrained_source, tmp_path / "model", head_channels=HEAD)
    (tmp_path / "exports").mkdir()
    file, write_file = tmp_path / "exports/one.safetensors", public_models.write_file

    def someone_else_writes(*args: Any) -> None:
        file.write_text("keep")
        write_file(*args)

    monkeypatch.setattr(public_models, "write_file", someone_else_writes)
    with pytest.raises(ArchError, match="already exists"):
        export_public(tmp_path / "model", file)
    assert file.read_text() == "keep"
    assert list(file.parent.iterdir()) == [file]


def test_of_two_conversions_to_one_place_one_wins_and_is_whole(
    untrained_source: Path, tmp_path: Path
) -> None:
    def attempt(seed: int) -> str:
        try:
            convert(untrained_source, tmp_path / "out", head_channels=HEAD, seed=seed)
        except ArchError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(attempt, (1, 2))
    assert bool(first) != bool(second)
    assert "already exists" in first + second
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    L2PTransformer.from_pretrained(tmp_path / "out/transformer")


@pytest.mark.parametrize("link", ["source", "weights"])
def test_what_links_lead_to_is_not_overwritten(untrained_source: Path, tmp_path: Path, link: str) -> None:
    """As in the cache of a hub, where a snapshot's files are links."""
    real, source = tmp_path / "real", tmp_path / "source"
    shutil.copytree(untrained_source, real)
    source.mkdir()
    for path in real.iterdir():
        target = source / path.name
        if link == "source" or path.name != "transformer":
            target.symlink_to(path)
            continue
        target.mkdir()
        for file in path.iterdir():
            (target / file.name).symlink_to(file)
    with pytest.raises(ArchError, match="real holds the source"):
        convert(source, real, head_channels=HEAD, overwrite=True)
    convert(source, tmp_path / "out", head_channels=HEAD)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_killed_surgery_was_replacing_is_there_again(
    untrained_source: Path, tmp_path: Path, overwrite: bool
) -> None:
    kill_between_the_renames = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from l2p_arch import convert\n"
        "rename = Path.rename\n"
        "def renamed(path, target):\n"
        "    if '.partial-' in path.name and path.is_dir():\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rename(path, target)\n"
        "Path.rename = renamed\n"
        "convert(sys.argv[1], sys.argv[2], head_channels=(8, 8, 16, 16), overwrite=True)\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep")
    command = [sys.executable, "-c", kill_between_the_renames, str(untrained_source), str(out)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    if overwrite:
        convert(untrained_source, out, head_channels=HEAD, overwrite=True)
        assert (out / "transformer").is_dir()
    else:
        with pytest.raises(ArchError, match="already exists"):
            convert(untrained_source, out, head_channels=HEAD)
        assert (out / "precious.txt").read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_existing_directory_is_replaced_only_when_asked(
    untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("keep")
    with pytest.raises(ArchError, match="already exists"):
        convert(untrained_source, tmp_path / "out", head_channels=HEAD)
    assert (tmp_path / "out/precious.txt").read_text() == "keep"
    convert(untrained_source, tmp_path / "out", head_channels=HEAD, overwrite=True)
    assert not (tmp_path / "out/precious.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        rename = Path.rename

        def failing(path: Path, target: Path) -> Path:
            if ".partial-" in path.name:
                raise OSError("no room")
            return rename(path, target)

        patch.setattr(Path, "rename", failing)
        convert(untrained_source, tmp_path / "out", head_channels=HEAD, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/transformer").is_dir()
    with pytest.raises(ArchError, match="which is read; choose a place outside of it"):
        convert(untrained_source, untrained_source, overwrite=True)

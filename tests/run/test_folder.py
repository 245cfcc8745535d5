"""A folder belongs to its settings and to one process at a time; stages in it are done once."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from l2p_run.errors import UserError
from l2p_run.folder import claim, lock, try_lock
from l2p_run.places import read_json, write_json, write_text
from l2p_run.progress import LineDisplay
from l2p_run.stages import Outcome, Stage, is_done, marker_path, read_marker, run_stages


def test_the_same_settings_may_come_again_and_others_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    claim(folder, {"size": (64, 64), "model": {"name": "a"}})
    claim(folder, {"model": {"name": "a"}, "size": [64, 64]})
    with pytest.raises(
        UserError, match=r'other settings \(model\.name: "a" -> "b"; size: .* -> nothing\); choose'
    ):
        claim(folder, {"model": {"name": "b"}})
    claim(folder, {"model": {"name": "b"}}, replace=True)
    assert read_json(folder / "settings.json") == {"model": {"name": "b"}}


def test_settings_noted_the_old_way_are_accepted_and_noted_anew(tmp_path: Path) -> None:
    claim(tmp_path / "x", {"a": 1})
    claim(tmp_path / "x", {"a": 1, "hash": "f"}, accepts=lambda old, new: old == {"a": new["a"]})
    assert read_json(tmp_path / "x" / "settings.json") == {"a": 1, "hash": "f"}


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "thesis.tex", "years of work")
    with pytest.raises(UserError, match=r"other files \(thesis\.tex\)"):
        claim(tmp_path, {"a": 1}, replace=True)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("damage", ["{", "[]", "5", ""])
def test_a_damaged_note_is_no_licence_to_mix(tmp_path: Path, damage: str) -> None:
    (tmp_path / "settings.json").write_text(damage)
    with pytest.raises(UserError, match="damaged"):
        claim(tmp_path, {"a": 1})


def test_a_lock_keeps_another_process_out_until_that_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from l2p_run.folder import lock\n"
        "with lock(Path(sys.argv[1]), busy='busy'): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "held\n"
        refused = pytest.raises(UserError, match="somebody is here")
        with refused, lock(tmp_path / ".lock", busy="somebody is here"):
            pass
        with try_lock(tmp_path / ".lock") as mine:
            assert not mine
        child.kill()
    with try_lock(tmp_path / ".lock") as mine:
        assert mine
    assert (tmp_path / ".lock").is_file()


@pytest.mark.parametrize("answer", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_keeps_two_apart_too(
    tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network ones. The file says who holds it: the living keeps it, and so does another machine."""
    refuse = f"import errno, fcntl\ndef no(*_): raise OSError(errno.{answer}, 'no locks')\nfcntl.flock = no\n"
    code = (
        refuse + "import sys, time; from pathlib import Path; from l2p_run.folder import lock\n"
        "with lock(Path(sys.argv[1]), busy='busy'): print('held', flush=True); time.sleep(60)"
    )
    path = tmp_path / ".lock"

    def no(*_: object) -> None:
        raise OSError(getattr(errno, answer), "no locks")

    monkeypatch.setattr("fcntl.flock", no)
    for _ in range(2):
        with lock(path, busy="busy"):
            pass
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout and child.stdout.readline() == "held\n"
        wanted = rf"somebody is here \(process {child.pid} of .* if that machine is no more, remove the file"
        with pytest.raises(UserError, match=wanted), lock(path, busy="somebody is here"):
            pass
        child.kill()
    with try_lock(path) as mine:  # a dead process of this machine blocks nobody
        assert mine
    path.write_text("12345\nanother-machine\n1\n")
    with (
        pytest.raises(UserError, match="process 12345 of another-machine"),
        lock(path, busy="somebody is here"),
    ):
        pass
    assert path.read_text().startswith("12345"), "nobody took it"


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match="cannot write to"), lock(tmp_path / "file" / ".lock", busy=""):
        pass


def _stages(log: list[str]) -> list[Stage[str]]:
    def work(name: str) -> Any:
        def execute(use: str, progress: Any) -> Outcome:
            log.append(f"{name} with {use}")
            progress(1, 2, "half")
            return Outcome(note=f"made {name}", values={"n": len(log)})

        return execute

    return [Stage(name=name, title=name.title(), execute=work(name)) for name in ("one", "two")]


def _run(folder: Path, log: list[str], identities: tuple[str, str] = ("a", "b"), old: str = "-") -> list[str]:
    pairs = [(stage, (identity, old)) for stage, identity in zip(_stages(log), identities, strict=True)]
    return run_stages(pairs, folder, "tools", LineDisplay())


def test_stages_run_once_and_again_only_where_their_identity_changed(tmp_path: Path) -> None:
    log: list[str] = []
    assert _run(tmp_path, log) == ["one", "two"]
    assert _run(tmp_path, log) == []
    assert _run(tmp_path, log, ("a", "c")) == ["two"]
    assert log == ["one with tools", "two with tools", "two with tools"]
    assert read_marker(tmp_path, "two")["values"] == {"n": 3} and is_done(tmp_path, "two", ["c"])
    assert [row["stage"] for row in read_json(tmp_path / "timings.json")] == ["one", "two"]


def test_an_identity_of_an_earlier_version_counts(tmp_path: Path) -> None:
    log: list[str] = []
    _run(tmp_path, log, ("old", "b"))
    assert _run(tmp_path, log, ("new", "b"), old="old") == []


@pytest.mark.parametrize(
    "damage",
    [
        "5",
        "{",
        "[]",
        "",
        '{"state": "done", "identity": "a"}',
        '{"state": "done", "identity": "a", "note": 5}',
    ],
)
def test_a_damaged_marker_is_made_again(tmp_path: Path, damage: str) -> None:
    log: list[str] = []
    _run(tmp_path, log)
    marker_path(tmp_path, "one").write_text(damage)
    assert _run(tmp_path, log) == ["one"]


def test_an_interrupted_stage_keeps_its_time(tmp_path: Path) -> None:
    def fail(use: str, progress: Any) -> Outcome:
        raise KeyboardInterrupt

    stage = Stage(name="one", title="One", execute=fail)
    write_json(
        marker_path(tmp_path, "one"),
        {"identity": "a", "state": "unfinished", "seconds": 5.0, "peak_bytes": 7},
    )
    with pytest.raises(KeyboardInterrupt):
        run_stages([(stage, ("a",))], tmp_path, "", LineDisplay())
    marker = read_marker(tmp_path, "one")
    assert marker["state"] == "unfinished" and marker["seconds"] >= 5 and marker["peak_bytes"] >= 7

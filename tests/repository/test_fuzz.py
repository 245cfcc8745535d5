"""The fuzz command: its judge sees each kind of fault, failures repeat, and half a minute finds none."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fuzzing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of cases."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from fuzzing import case

    return case


def by_name(command: Sequence[str], folder: Path) -> int:
    """A command of every way to end."""
    name, *_ = command
    if name == "bug":
        raise KeyError("x")
    if name == "wordy":
        print("error: one\nand what follows", file=sys.stderr)
    if name == "refuse":
        print("error: no", file=sys.stderr)
    if name == "nan":
        print('{"loss": NaN}')
    if name == "memory":
        bytearray(64 << 30)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "read":
        print(json.dumps(Path("given.txt").read_text()))
    return {"refuse": 2, "wordy": 2, "silent": 2, "odd": 7}.get(name, 0)


@pytest.mark.parametrize(
    ("command", "twin", "said"),
    [
        ("bug", "", "a traceback"),
        ("memory", "", "a traceback:.*MemoryError"),
        ("wordy", "", "2 lines, the last of which is no error"),
        ("silent", "", "without a word"),
        ("odd", "", "exit code 7"),
        ("nan", "", "a number in the result is NaN"),
        ("killed", "", "killed by SIGKILL"),
        ("fine", "refuse", "'accepted', but refuse: 'error: no'"),
        ("refuse", "fine", "'error: no', but fine: 'accepted'"),
        ("refuse", "refuse", "^$"),
        ("fine", "fine", "^$"),
        ("read", "", "^$"),
    ],
)
def test_the_judge_sees_every_kind_of_fault(
    fuzzing: Any, tmp_path: Path, command: str, twin: str, said: str
) -> None:
    import re

    files = {"given.txt": fuzzing.encoded(b"text")}
    case = fuzzing.Case(area="x", command=(command,), twin=(twin,) if twin else (), files=files)
    result = fuzzing.run(case, tmp_path, by_name)
    assert re.search(said, result.problem), result.problem
    again = fuzzing.Case.from_json(case.to_json(problem=result.problem))
    assert again == case and fuzzing.run(again, tmp_path, by_name).problem == result.problem


def test_seeds_stay_as_they_are_whatever_a_case_does_to_its_copy(fuzzing: Any, tmp_path: Path) -> None:
    seed = tmp_path / "seeds" / "model"
    seed.mkdir(parents=True)
    header = json.dumps({"a": 1}).encode()
    content = len(header).to_bytes(8, "little") + header + b"weights"
    (seed / "w.safetensors").write_bytes(content)
    edits: list[Callable[[], Any]] = [
        lambda: fuzzing.Edit(file="m/w.safetensors", offset=-2, content=fuzzing.encoded(b"XY")),
        lambda: fuzzing.Edit(file="m/w.safetensors", offset=3, cut=True),
        lambda: fuzzing.Edit(file="m/w.safetensors", header="[]"),
    ]
    for number, made in enumerate([content[:-2] + b"XY", content[:3], b"\2" + bytes(7) + b"[]weights"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = fuzzing.Case(area="x", copies={"m": "model"}, edits=(edits[number](),))
        fuzzing.lay_out(case, folder, tmp_path / "seeds")
        assert (folder / "m" / "w.safetensors").read_bytes() == made
    assert (seed / "w.safetensors").read_bytes() == content


def test_half_a_minute_over_all_areas_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/fuzz.py", "--minutes", "0.5", "--failures", str(tmp_path), "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    rows = json.loads(ended.stdout)
    assert len(rows) == 11 and sum(row["cases"] for row in rows) > 0

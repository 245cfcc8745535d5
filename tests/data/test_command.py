"""`l2p-data` at the edges of a shell: closed pipes, full disks, Ctrl-C, usage, versions."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from l2p_data.cli import main

COMMAND = [sys.executable, "-m", "l2p_data.cli"]
PROGRAM = "import sys; from l2p_data.cli import main; sys.exit(main(sys.argv[1:]))"
RUN = [sys.executable, "-c", PROGRAM]


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    line = f"'{sys.executable}' -c '{PROGRAM}' taxonomy | head -1; echo ${{PIPESTATUS[0]}}"
    shell = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert shell.stdout.splitlines() == ["categories: 1300", "0"] or shell.stdout.endswith("\n0\n")
    assert shell.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("options", [["taxonomy"], ["taxonomy", "--json"], ["--version"], ["--help"]])
def test_a_result_that_cannot_be_written_is_one_line(options: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*RUN, *options], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert "Traceback" not in done.stderr and done.stderr.count("\n") <= 1
    if options[0] == "taxonomy":
        assert done.returncode == 2 and "No space left on device" in done.stderr


def test_ctrl_c_ends_in_one_line_at_any_moment(tmp_path: Path) -> None:
    """From the first imports on; the process itself takes a moment until Python runs."""
    words = [
        "prompts",
        "--server",
        "http://127.0.0.1:9/v1",
        "--model",
        "m",
        "--count",
        "9",
        "--out",
        "p.parquet",
    ]
    for wait in (0.3, 0.8, 2.0):
        process = subprocess.Popen(
            [*RUN, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
        if process.returncode in (-signal.SIGINT, 2):  # before our code began, or after it ended
            continue
        if "Traceback" in error:
            assert "l2p_data" not in error and "l2p_run" not in error, error  # Python's own start
            continue
        assert process.returncode == 130 and error.strip().count("\n") == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["prompts"],
        ["prompts", "--grammar", "a", "--server", "b", "--count", "1", "--out", "x"],
        ["import", "folder"],
        ["export", "c", "--out", "x", "--layout", "other"],
        ["verify", "c", "--unknown"],
        ["synthesize", "p", "--model", "m", "--out", "o", "--width", "x" * 5000],
    ],
)
def test_a_mistake_of_usage_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:  # the parser's own way to end
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 800
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("l2p-data ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.toml", "a = " + "[" * 20_000),
        ("g.toml", "x = " + "9" * 6000),
        ("g.toml", b"\xff\xfe\x00"),
        ("g.toml", "é = 1".encode("latin-1")),
        ("p.jsonl", '{"prompt": ' + "[" * 90_000),
        ("p.jsonl", '{"prompt": "a"}\n7\n'),
        ("p.txt", "crème".encode("latin-1")),
        ("p.csv", "prompt\ncrème\n".encode("cp1252")),
    ],
)
def test_a_file_that_is_nested_or_coded_otherwise_is_one_line(
    name: str, content: str | bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = ["--out", str(tmp_path / "o.parquet")]
    words = ["filter", str(path), *out] if name.startswith("p") else ["taxonomy", "--extend", str(path)]
    for command in [words] + (
        [["prompts", "--grammar", str(path), "--count", "2", *out]] if name[0] == "g" else []
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 500


def test_marks_of_unicode_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    from l2p_data import read_prompts

    for coding in ("utf-8-sig", "utf-16", "utf-8"):
        for name, text in (
            ("p.txt", "a cat\n"),
            ("p.csv", "prompt\na cat\n"),
            ("p.jsonl", '{"prompt": "a cat"}\n'),
        ):
            (tmp_path / name).write_bytes(text.encode(coding))
            assert read_prompts(tmp_path / name)["prompt"].to_list() == ["a cat"], (coding, name)

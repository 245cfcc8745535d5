"""A command ends with the right code and one line, whatever is done to it."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from l2p_run.command import Parser, run_command

COMMAND = """
import sys
from l2p_run.command import Parser, number, out, run_command, seed_argument

def main():
    return run_command(work)

def work():
    parser = Parser(prog="example", package="l2p-run")
    parser.add_argument("what")
    parser.add_argument("--steps", type=number(int, ge=1), default=1)
    parser.add_argument("--rate", type=number(gt=0))
    parser.add_argument("--seed", type=seed_argument)
    options = parser.parse_args()
    return globals()[options.what](options)

def lines(options):
    for index in range(100_000):
        out(f"line {index}")

def printed(options):
    for index in range(100_000):
        print("line", index)

def refused(options):
    from l2p_run.errors import UserError
    raise UserError("first\\nsecond")

def bug(options):
    raise KeyError("bug")

def own(options):
    class Stop(Exception):
        exit_code = 3
    raise Stop("not reached")

def wait(options):
    import time
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        if options.steps > 1:
            print("tidying", flush=True)
            time.sleep(60)

def write(options):
    from pathlib import Path
    Path("/dev/full").write_text("x" * 10_000)

def denied(options):
    import errno
    raise PermissionError(errno.EACCES, "Permission denied", "/root/x")

def missing(options):
    open("/no/such/file")

def deep(options):
    import json
    json.loads("[" * 100_000)

def memory(options):
    raise MemoryError

def pipe(options):
    raise BrokenPipeError(32, "Broken pipe")

def snowman(options):
    out("\\u2603 \\udcff")

sys.exit(main())
"""


def run(*arguments: str, out: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["refused"], 2, "error: first second"),
        (["own"], 3, "error: not reached"),
        (["write"], 2, "free some space"),
        (["denied"], 2, "error: cannot use /root/x: Permission denied; its owner can allow it"),
        (["deep"], 2, "nested too deeply"),
        (["memory"], 2, "the memory is not enough"),
        ([], 2, "--help says more"),
        (["--nosuch"], 2, "--help says more"),
        (["own", "--steps", "0"], 2, "at least 1"),
        (["own", "--steps", "1.5"], 2, "not a whole number"),
        (["own", "--rate", "nan"], 2, "finite"),
        (["own", "--rate=-inf"], 2, "finite"),
        (["own", "--rate", "0"], 2, "above 0"),
        (["own", "--seed", "-1"], 2, "at least 0"),
        (["own", "--seed", str(2**64)], 2, "at most"),
        (["own", "x" * 100_000], 2, "--help says more"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(arguments: list[str], code: int, said: str) -> None:
    done = run(*arguments)
    assert done.returncode == code and said in done.stderr
    assert done.stderr.count("\n") == 1 and len(done.stderr) < 700 and done.stdout == ""


@pytest.mark.parametrize("what", ["bug", "missing", "pipe"])
def test_a_bug_keeps_its_traceback(what: str) -> None:
    done = run(what)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_the_traceback_of_an_error_can_be_asked_for() -> None:
    done = run("refused", L2P_TRACEBACK="1")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_version_and_help_print_and_end() -> None:
    assert run("--version").stdout.startswith("l2p-run ")
    assert run("--help").returncode == 0


@pytest.mark.parametrize("what", ["lines", "printed"])
def test_a_reader_who_has_seen_enough_is_no_error(what: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "$SCRIPT" {what} | head -1'],
        capture_output=True,
        text=True,
        env={**os.environ, "SCRIPT": COMMAND},
        timeout=60,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "line 0\n")


@pytest.mark.parametrize("arguments", [["lines"], ["printed"], ["--version"]])
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run(*arguments, out=full.fileno())
    assert done.returncode == 2 and "No space left on device" in done.stderr and done.stderr.count("\n") == 1


def test_a_closed_stderr_changes_no_exit_code() -> None:
    for what, code in (("refused", 2), ("own", 3)):
        line = f'"{sys.executable}" -c "$SCRIPT" {what} 2>&-'
        assert subprocess.run(["bash", "-c", line], env={**os.environ, "SCRIPT": COMMAND}).returncode == code


def test_what_the_terminal_cannot_show_is_escaped() -> None:
    done = run("snowman", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u2603 \\udcff\n", "")


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_ends_it_in_one_line(number: int, word: str) -> None:
    with _started("wait") as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors == f"{word}; run the same command again to go on\n"


def test_a_second_signal_while_it_tidies_up_ends_it_at_once_and_without_a_traceback() -> None:
    with _started("wait", "--steps", "2") as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "tidying\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors == "" and time.monotonic() - began < 10


def _started(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_importing_any_module_loads_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys, l2p_run\n"
        "from pathlib import Path\n"
        "root = Path(l2p_run.__file__).parent\n"
        "for path in sorted(root.rglob('*.py')):\n"
        "    name = '.'.join(('l2p_run', *path.relative_to(root).with_suffix('').parts))\n"
        "    if 'pictures' not in name: __import__(name.removesuffix('.__init__'))  # for who opens some\n"
        "names = {'torch', 'ray', 'fsspec', 'upath', 'rich', 'psutil', 'numpy', 'filelock'}\n"
        "heavy = names & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path("/"))
    assert time.monotonic() - began < 10


def test_the_frame_gives_signals_back_when_it_is_not_the_whole_process() -> None:
    from l2p_run.command import run_command

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run_command(lambda: None) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command in a shell, with what is done to its streams."""
    script = tmp_path / "example.py"
    script.write_text(COMMAND)

    def run(words: str, unbuffered: str) -> "subprocess.CompletedProcess[str]":
        line = f"exec {sys.executable} {script} {words}"
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("lines >&-", 0, ""),
        ("printed <&- >&- 2>&-", 0, ""),
        ("refused >&-", 2, "error: first second"),
        ("refused <&- 2>&-", 2, ""),
        ("lines --steps x >&-", 2, "error: argument --steps"),
        ("lines --steps x 2>&-", 2, ""),
        ("--version <&- >&-", 0, ""),
        ("--help >&-", 0, ""),
    ],
)
def test_streams_that_are_closed_are_no_bug(
    shell: Any, words: str, code: int, said: str, unbuffered: str
) -> None:
    """As `>&-` leaves them, and some supervisors."""
    ended = shell(words, unbuffered)
    assert ended.returncode == code and ended.stderr.startswith(said), ended.stderr
    assert bool(ended.stderr) == bool(said)


@pytest.mark.parametrize(
    "hidden", ["\x1b[2J", "a\x1db", "\u202e", "\x9b31m", "\r\n", "\u2028", "\x00", "\ud800"]
)
def test_errors_hold_nothing_that_steers_a_terminal(hidden: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file name or a prompt may hold it."""
    from l2p_run.errors import UserError

    def fail() -> int:
        raise UserError(f"no file {hidden}; give 中文 or é")

    def refuse() -> int:
        raise OSError(errno.ENAMETOOLONG, "File name too long", f"x{hidden}")

    def parse() -> int:
        Parser(prog="x").error(f"unrecognized arguments: {hidden}")

    for work in (fail, refuse, parse):
        try:
            code = run_command(work)
        except SystemExit as stop:
            code = int(str(stop.code))
        said = capsys.readouterr().err
        assert code == 2 and said.startswith("error: ") and said.endswith("\n")
        assert said[:-1].isprintable() and len(said.splitlines()) == 1
    assert "中文 or é" in (run_command(fail), capsys.readouterr().err)[1]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "--version"])
def test_help_that_cannot_be_written_is_an_error(shell: Any, words: str, unbuffered: str) -> None:
    ended = shell(f"{words} > /dev/full", unbuffered)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: cannot write the result to standard output: No space left")

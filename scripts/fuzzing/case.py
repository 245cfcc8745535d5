"""One case: files, a command, and what became of it.

A case runs in a child of this process, which has imported what takes seconds and computed nothing, in a
folder of its own, with a bound on time and memory. It is plain JSON, so that a failure is a file that does
the same again anywhere.
"""

import base64
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

MOST_SECONDS = 60.0  # of a processor; of the clock ten times as many, for a busy machine
MOST_BYTES = 3 << 30  # of address space, beyond what the parent has
LONGEST_LINE = 2000  # characters of an error
ACCEPTED, REFUSED, INTERRUPTED = 0, 2, 130


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Bytes to write over those of a file, after which it may be cut off.

    A negative offset counts from the file's end; `header` replaces a safetensors file's JSON instead.
    """

    file: str
    offset: int = 0
    content: str = ""  # base64
    cut: bool = False
    header: str | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is tried.

    Attributes:
        area: name of the module that made it, and what runs it.
        command: a command line, program first.
        twin: another command line that must be accepted exactly when the first one is.
        copies: name in the case's folder -> name of a seed.
        files: name -> base64 of the content.
    """

    area: str
    command: tuple[str, ...] = ()
    twin: tuple[str, ...] = ()
    copies: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    def to_json(self, **more: str) -> str:
        return json.dumps({**more, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Case":
        values = json.loads(text)
        values.pop("problem", None)
        edits = tuple(Edit(**edit) for edit in values.pop("edits"))
        lists = {name: tuple(values.pop(name)) for name in ("command", "twin")}
        return cls(**values, **lists, edits=edits)

    @property
    def name(self) -> str:
        return f"{self.area}-{hashlib.sha256(self.to_json().encode()).hexdigest()[:10]}"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one command line ended."""

    code: int  # negative: the signal that killed it
    out: str
    err: str
    seconds: float  # of a processor
    peak_bytes: int
    late: bool = False  # a bound on time was reached


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a case ended: its command, its twin if it has one, and what is wrong, if anything."""

    ends: tuple[Ended, ...]
    problem: str


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def lay_out(case: Case, folder: Path, seeds: Path) -> None:
    """Put a case's files into its folder; seeds are linked where nothing changes them."""
    for name, seed in case.copies.items():
        origin = seeds / seed
        if origin.is_dir():
            shutil.copytree(origin, folder / name, copy_function=os.link)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(origin, folder / name)
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(base64.b64decode(content))
    for edit in case.edits:
        _apply(edit, folder / edit.file)


def _apply(edit: Edit, path: Path) -> None:
    content = bytearray(path.read_bytes())
    path.unlink()  # the seed itself stays as it is
    if edit.header is not None:
        length = int.from_bytes(content[:8], "little")
        header = edit.header.encode("utf-8", "surrogatepass")
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        return
    start = max(0, len(content) + edit.offset) if edit.offset < 0 else min(edit.offset, len(content))
    new = base64.b64decode(edit.content)
    content[start : start + len(new)] = new
    path.write_bytes(content[: start + len(new)] if edit.cut else content)


def run(case: Case, seeds: Path, work: Callable[[Sequence[str], Path], int]) -> Result:
    """Lay a case out, run it, judge it.

    Args:
        work: does what a command line says and returns its exit code; runs in a child.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        (folder / "case").mkdir()
        lay_out(case, folder / "case", seeds)
        ends = [_child(case.command, folder, work)]
        problem = judge(ends[0])
        if case.twin and not problem:
            shutil.rmtree(folder / "case")
            (folder / "case").mkdir()
            lay_out(case, folder / "case", seeds)
            ends.append(_child(case.twin, folder, work))
            problem = judge(ends[1])
            if not problem and (ends[0].code == ACCEPTED) != (ends[1].code == ACCEPTED):
                said = [(end.err.strip() or "accepted")[:300] for end in ends]
                problem = f"{' '.join(case.command)}: {said[0]!r}, but {' '.join(case.twin)}: {said[1]!r}"
        return Result(ends=tuple(ends), problem=problem)


def judge(end: Ended) -> str:
    """What is wrong with an end; "" if nothing is."""
    lines = [line for line in end.err.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else ""
    if end.late:
        return f"still at work after {MOST_SECONDS:.0f} s of a processor, or ten times as many of the clock"
    if "Traceback (most recent call last)" in end.err:
        return f"a traceback: {_place(lines)} {last}"
    if end.code < 0:
        return f"killed by {signal.Signals(-end.code).name}; {last}"
    if end.code not in (ACCEPTED, REFUSED, INTERRUPTED):
        return f"exit code {end.code}: {last}"
    if end.code == ACCEPTED:
        return _not_finite(end.out)
    if "memory is not enough" in last:
        return f"more than {MOST_BYTES >> 30} GiB of memory: {last}"
    if not lines:
        return f"exit code {end.code} without a word"
    # What comes before an error is progress; a dry run says all that it found, each in a line.
    if end.code == REFUSED and not lines[-1].startswith("error: "):
        return f"{len(lines)} lines, the last of which is no error: {last}"
    if any(len(line) > LONGEST_LINE for line in lines):
        return f"an error of {max(map(len, lines))} characters: {lines[0][:100]}"
    return ""


def _place(lines: Sequence[str]) -> str:
    """The innermost of our own lines in a traceback."""
    ours = [line.strip() for line in lines if line.lstrip().startswith("File ") and "l2p_" in line]
    return ours[-1].replace(os.sep, "/").rpartition("/")[2] if ours else ""


def _not_finite(out: str) -> str:
    def refuse(name: str) -> None:
        raise ArithmeticError(name)

    if not out.lstrip().startswith(("{", "[")):
        return ""
    try:
        json.loads(out, parse_constant=refuse)
    except ArithmeticError as error:
        return f"accepted, and a number in the result is {error}"
    except ValueError:
        return ""
    return ""


def _child(command: Sequence[str], folder: Path, work: Callable[[Sequence[str], Path], int]) -> Ended:
    """Run a command line in a child of this process."""
    sys.stdout.flush(), sys.stderr.flush()
    started = time.monotonic()
    number = os.fork()
    if number == 0:
        code = 1
        try:
            os.setsid()
            _settle(folder)
            _renew_threads()
            code = _exit_code(command, folder, work)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code & 0xFF)
    late = False
    while True:
        ended, status, usage = os.wait4(number, os.WNOHANG)
        if ended:
            break
        if not late and time.monotonic() - started > 10 * MOST_SECONDS:
            late = True
            os.killpg(number, signal.SIGKILL)
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)  # what it may have started
    code = os.waitstatus_to_exitcode(status)
    return Ended(
        code=code,
        out=(folder / "stdout").read_text(errors="replace")[:1_000_000],
        err=(folder / "stderr").read_text(errors="replace")[:1_000_000],
        seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss << 10,
        late=late or code == -signal.SIGXCPU,
    )


def _settle(folder: Path) -> None:
    """The child's own folder, streams and bounds."""
    os.chdir(folder / "case")
    for descriptor, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, folder / "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    # The parent's own objects may be a test runner's.
    sys.stdin, sys.stdout, sys.stderr = (
        open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the whole process
        for descriptor, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * os.sysconf("SC_PAGE_SIZE") + MOST_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard)
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(MOST_SECONDS), int(MOST_SECONDS) + 1))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _renew_threads() -> None:
    """Make PyTorch's pool of threads anew, which a fork breaks, while there is one thread: it is not made
    safely when several threads of the child ask for it at once ("Invalid thread pool!")."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())


def _exit_code(command: Sequence[str], folder: Path, work: Callable[[Sequence[str], Path], int]) -> int:
    try:
        return work(command, folder)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1

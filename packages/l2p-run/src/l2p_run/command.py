"""One frame for every command: its parser, its exit codes, signals, closed pipes, and errors in one line.

    def main(arguments: Sequence[str] | None = None) -> int:
        return run_command(lambda: _run(_parser().parse_args(arguments)))

Exit codes: 0 done, 1 a bug (with its traceback), 2 usage or input, or a machine that cannot do it, 3 not
reached, 130 and 143 interrupted by SIGINT and SIGTERM.

Nothing but the standard library is imported here, and commands import what they need inside the guarded
function, so that Ctrl-C in the first second ends them in one line, too.
"""

import argparse
import importlib.metadata
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

from l2p_run.errors import UserError, disk_is_full, explained, is_environment

OK, BUG, USAGE_ERROR, NOT_REACHED = 0, 1, 2, 3
GOES_ON = "run the same command again to go on"


class Parser(argparse.ArgumentParser):
    """A parser that says a mistake in one line, and knows --version."""

    def __init__(self, *arguments: Any, package: str = "", **options: Any) -> None:
        """As `ArgumentParser`.

        Args:
            package: the distribution whose version --version prints; "": there is no --version, as in the
                parsers of subcommands.
        """
        super().__init__(*arguments, **options)
        if package:
            self.add_argument("--version", action=_Version, package=package, help="print the version and end")

    def error(self, message: str) -> NoReturn:
        """Return one line, as for every other mistake."""
        # Only the head of what was given: an argument may be a whole text.
        shown = printable(message)
        shown = shown if len(shown) <= 500 else shown[:499] + "…"
        self.exit(USAGE_ERROR, f"error: {shown}; {self.prog} --help says more\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help that cannot be written is an error, as every result is; argparse itself is silent about it."""
        if message and file is sys.stdout:
            out(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)


class _Version(argparse.Action):
    """--version, which looks the version up only when it is asked for."""

    def __init__(self, option_strings: Any, dest: str, package: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.package = package

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        out(f"{self.package} {importlib.metadata.version(self.package)}")
        parser.exit()


def number(
    kind: type = float,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Callable[[str], Any]:
    """Return a `type` of argparse: a number in a range; never NaN or infinity.

    add("--steps", type=number(int, ge=1))
    """
    from l2p_run.settings import Range

    bounds = Range(ge=ge, gt=gt, le=le, lt=lt)

    def parse(text: str) -> Any:
        wanted = "a whole number" if kind is int else "a number"
        try:
            value = kind(text)
        except ValueError:
            shown = text if len(text) <= 60 else text[:59] + "…"
            raise argparse.ArgumentTypeError(f"{shown!r} is not {wanted}") from None
        if problem := bounds.problem(value):
            raise argparse.ArgumentTypeError(f"{text[:60]} is out of range; it must be {problem}")
        return value

    return parse


def seed_argument(text: str) -> int:
    """Return a `type` of argparse: a seed that every generator takes, 0 to 2**63 - 1."""
    from l2p_run.settings import LARGEST_SEED

    return int(number(int, ge=0, le=LARGEST_SEED)(text))


# -------------------------------------------------------------------------------------------------- output


def out(text: str) -> None:
    """Print a result on stdout.

    A reader who has seen enough (`| head -1`) is no error; a disk that is full is one.

    Raises:
        UserError: the output cannot be written.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _silence(sys.stdout)
    except UnicodeEncodeError:  # a path may hold what the terminal's encoding does not
        encoding = sys.stdout.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        _silence(sys.stdout)
        raise UserError(explained("cannot write the result to standard output", error)) from error


def _silence(stream: Any) -> None:
    """Point a broken stream at nothing, so that Python's own flush at the end has nothing to complain
    about."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
    except (OSError, ValueError, AttributeError):
        pass


def printable(text: str) -> str:
    """Return a text in one line, without characters that steer a terminal: what was handed in may hold
    some.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _complain(text: str) -> None:
    """Print one line on stderr, if anybody reads it."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _silence(sys.stderr)


# ------------------------------------------------------------------------------------------------ the frame


class Terminated(BaseException):
    """SIGTERM arrived."""


def quiet_libraries() -> None:
    """Tell libraries what they would otherwise guess and warn about, here and in worker processes: no hub, no
    advice on forked tokenizers. What the user has set stays."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def run_command(
    work: Callable[[], int | None],
    *,
    interrupted: str = GOES_ON,
    own_signals: bool = False,
    user_errors: tuple[type[Exception], ...] = (),
) -> int:
    """Run a command's whole work and return its exit code; raises a bug, and the parser's `SystemExit`.

    An exception whose `exit_code` is a number ends the command with its message in one line and that code:
    `UserError`, the packages' errors, the trainer's `Interrupted`.

    Args:
        work: parses, imports and does everything; its answer is the exit code, None for 0.
        interrupted: what to do after Ctrl-C, in words.
        own_signals: the command handles SIGINT and SIGTERM itself.
        user_errors: further exceptions that a user can put right.
    """
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Pillow warns of damaged pictures, and of large ones; what matters of them is in our own lines.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with nullcontext() if own_signals else _signals():
        try:
            code = work() or OK
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            _complain(f"interrupted; {interrupted}")
            return 128 + signal.SIGINT
        except Terminated:
            _complain(f"terminated; {interrupted}")
            return 128 + signal.SIGTERM
        except SystemExit as stop:  # of the parser, which callers know to raise it
            raise SystemExit(_code_of(stop)) from None
        except Exception as error:
            return _ended_by(error, user_errors)


def _open_what_is_closed() -> None:
    """Point standard streams that were closed (`>&-`, some supervisors) at nothing: the next file that is
    opened would else take their number, and what a library prints would land in it."""
    for number_, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number_)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number_, mode, closefd=False))  # noqa: SIM115 - for the whole process


def _ended_by(error: Exception, user_errors: tuple[type[Exception], ...]) -> int:
    """Return the exit code of an exception, after its line; raises what is a bug again."""
    if os.environ.get("L2P_TRACEBACK"):
        raise error
    own = getattr(error, "exit_code", None)
    if isinstance(own, int) and not isinstance(own, bool):
        text = " ".join(str(error).split())
        _complain(text if own > NOT_REACHED else f"error: {text}")
        return own
    if isinstance(error, user_errors):
        _complain(f"error: {' '.join(str(error).split())}")
        return USAGE_ERROR
    if isinstance(error, BrokenPipeError) and _stdout_is_closed():
        return OK
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        said = " ".join(str(error).split())[:200]
        _complain(
            f"error: the memory is not enough{f' ({said})' if said else ''}; use smaller batches or images"
        )
        return USAGE_ERROR
    if isinstance(error, RecursionError):
        _complain(
            "error: something that was given is nested too deeply to be read; L2P_TRACEBACK=1 shows where"
        )
        return USAGE_ERROR
    if is_environment(error):
        named = getattr(error, "filename", None)
        what = f"cannot use {os.fsdecode(named)}" if isinstance(named, str | bytes) else "the machine refused"
        _complain(f"error: {explained('cannot write' if disk_is_full(error) and not named else what, error)}")
        return USAGE_ERROR
    raise error


def _stdout_is_closed() -> bool:
    """Return whether the reader of our results is gone, rather than some other pipe broken."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
        return True
    except (OSError, ValueError):
        return False
    import select

    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # errors are reported whatever is asked for
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def _code_of(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _silence(sys.stdout)
        except OSError as error:
            _silence(sys.stdout)
            _complain(f"error: {explained('cannot write the result to standard output', error)}")
            return USAGE_ERROR
        return int(stop.code or OK)
    _complain(str(stop.code))
    return BUG


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM as exceptions, once; a second one ends the process at once.

    Whoever presses Ctrl-C again while things are put away means it: everything that was written is whole
    anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        if seen:
            os._exit(128 + seen[0])
        seen.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    before = {}
    for number_ in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number_) is not signal.SIG_IGN:  # nohup and background jobs mean that
            before[number_] = signal.signal(number_, interrupt)
    try:
        yield
    finally:
        for number_, handler in before.items():
            # Python's own handler would end a process that is ending already with a traceback.
            signal.signal(number_, signal.SIG_DFL if seen else handler)

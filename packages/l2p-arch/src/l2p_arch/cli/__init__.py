"""`l2p-arch`: checkpoints on the command line. Results go to stdout, the rest to stderr."""

import gc
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from l2p_arch.cli.commands import COMMANDS
from l2p_arch.cli.options import parser
from l2p_arch.cli.printing import print_result, printable
from l2p_arch.errors import ArchError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 ok, 1 a bug, 2 usage or input, 130 interrupted, 143 ended."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path may hold what the terminal's encoding does not
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        with _ended_by_sigterm():
            result = COMMANDS[options.command](options)
    except ArchError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, _Ended) as end:
        print("interrupted; nothing was written", file=sys.stderr)
        return 143 if isinstance(end, _Ended) else 130
    return print_result(json.dumps(result) if options.json else result["summary"])


class _Ended(BaseException):
    """SIGTERM came; what is half written is removed on the way out, as after Ctrl-C."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise _Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command_line() -> int:
    """Run `main` as the whole of a process: Python's last act would be to look for garbage among all that
    torch and diffusers consist of, for 1.5 s."""
    try:
        code = main()
    except KeyboardInterrupt:  # before main could begin
        print("interrupted; nothing was written", file=sys.stderr)
        code = 130
    gc.freeze()
    return code

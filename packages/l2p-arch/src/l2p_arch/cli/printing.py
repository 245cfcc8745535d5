"""What `l2p-arch` prints: results on stdout, in any terminal's encoding; mistakes in one line."""

import contextlib
import os
import sys


def printable(text: str) -> str:
    """Return a text in one line, without characters that steer a terminal: what was handed in may hold
    some.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def print_result(text: str) -> int:
    """Print the result, and say so where it cannot be written; a reader who has seen enough is no mistake."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Python flushes once more when it ends, and would complain in a traceback.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"error: cannot write the result: {error.strerror}; free some space", file=sys.stderr)
            return 2
    return 0

"""The exception for mistakes that a user can put right, and the exceptions of libraries in a few words."""


class ArchError(ValueError):
    """Says in one line what was given, what was wanted, and the remedy."""

    exit_code = 2  # of a command that it ends


def reason(error: BaseException) -> str:
    """Return the first line of an exception, short."""
    lines = str(error).strip().splitlines() or [""]
    return (lines[0] or type(error).__name__)[:200]

"""Errors that people read: one line with what was given, what was wanted and the remedy."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in what the user handed in, or a machine that cannot do what was asked.

    A command prints it in one line, without a traceback, and exits with `exit_code`. The errors of the
    packages are subclasses.
    """

    exit_code = 2


@contextmanager
def raised_as(kind: type[Exception]) -> Iterator[None]:
    """Raise a `UserError` of the block as `kind`, a package's own error; also usable as a decorator.

    write_json = raised_as(DataError)(places.write_json)
    """
    try:
        yield
    except UserError as error:
        if isinstance(error, kind) or type(error) is not UserError:
            raise
        raise kind(str(error)) from error


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception as one line: its type and message, whitespace collapsed, cut at `limit`
    characters.
    """
    text = " ".join(str(error).split())
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM)
_REMEDIES = {
    **dict.fromkeys(_FULL, "free some space and run the same command again"),
    **dict.fromkeys(_DENIED, "its owner can allow it (chmod, chown)"),
    errno.EROFS: "its file system is mounted for reading only: mount it for writing",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the whole system has too many files open; close other programs",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its symbolic links lead round in a circle; mend them",
    errno.ENOTDIR: "a part of the path is a file and no folder; give another path",
    errno.EISDIR: "it is a folder; give the path of a file",
    errno.EIO: "the disk or the network failed; the file may be whole: check the device, then run it again",
    errno.ESTALE: "the network file system lost it; mount it again, then run the same command",
    errno.ETIMEDOUT: "the network file system did not answer; run the same command when it does",
    errno.ENODEV: "the device is gone; connect it again, then run the same command",
    errno.ENXIO: "the device is gone; connect it again, then run the same command",
    errno.ENOMEM: "the machine's memory is used up; close other programs",
}


def remedy(error: OSError, otherwise: str = "") -> str:
    """Return what helps against an error of the operating system, by its cause.

    Args:
        otherwise: what helps where the cause is none that this knows, and beside asking for permission.
    """
    found = _REMEDIES.get(error.errno or 0, otherwise)
    return f"{found}, or {otherwise}" if otherwise and error.errno in (*_DENIED, errno.EROFS) else found


def is_environment(error: BaseException) -> bool:
    """Return whether an error of the operating system says that the machine cannot do what was asked (full
    disk, no permission, broken device), and so is no bug."""
    return disk_is_full(error) or (isinstance(error, OSError) and (error.errno or 0) in _REMEDIES)


def disk_is_full(error: BaseException) -> bool:
    """Return whether a full disk is the cause. Libraries wrap it: that of safetensors is no OSError."""
    return getattr(error, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in str(error)


def explained(what: str, error: BaseException, otherwise: str = "") -> str:
    """Return one line for a failure to do `what` ("cannot write PATH"): its cause and its remedy."""
    cause = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    if disk_is_full(error):
        cause, help_ = os.strerror(errno.ENOSPC), _REMEDIES[errno.ENOSPC]
    else:
        help_ = remedy(error, otherwise) if isinstance(error, OSError) else otherwise
    return f"{what}: {cause}" + (f"; {help_}" if help_ else "")

"""The one exception of this package that is meant for users, and the check of arguments that raises it."""

from l2p_run.errors import UserError
from l2p_run.settings import checked


class DataError(UserError):
    """A mistake in what the user handed in: a path, a file's content, a setting.

    The message is one line that says what was given, what was wanted and the remedy; a command line
    prints it without a traceback and exits with 2.
    """


checks = checked(DataError)
"""Decorates the functions that are called from Python; see `l2p_run.settings.checked`."""

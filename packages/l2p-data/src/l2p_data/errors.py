"""The one exception of this package that is meant for users."""

from l2p_run.errors import UserError


class DataError(UserError):
    """A mistake in what the user handed in: a path, a file's content, a setting.

    The message is one line that says what was given, what was wanted and the remedy; a command line
    prints it without a traceback and exits with 2.
    """

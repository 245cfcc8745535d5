"""The exception of this package for what its user, or a client of its server, can put right."""

from l2p_run.errors import UserError


class ServeError(UserError):
    """One line that says what was given, what was wanted and the remedy; exit code 2."""

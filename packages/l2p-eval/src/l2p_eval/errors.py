"""The one exception of this package that is meant for users."""

from l2p_run.errors import UserError


class EvalError(UserError):
    """What was given cannot be evaluated; the message says what was given, what was wanted and the remedy."""

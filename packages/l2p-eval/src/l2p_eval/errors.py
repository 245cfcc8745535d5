"""The one exception of this package that is meant for users."""


class EvalError(ValueError):
    """What was given cannot be evaluated; the message says what was given, what was wanted and the remedy."""

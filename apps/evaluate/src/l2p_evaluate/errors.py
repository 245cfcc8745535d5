"""The exception of the evaluation app for what its user can put right."""


class EvaluateError(ValueError):
    """One line that says what was given, what was wanted and the remedy; exit code 2."""

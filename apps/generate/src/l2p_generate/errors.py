"""The exception of the generate app for what its user can put right."""


class GenerateError(ValueError):
    """One line that says what was given, what was wanted and the remedy; exit code 2."""

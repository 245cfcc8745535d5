"""The exception of the ablation app for what its user can put right."""


class AblateError(ValueError):
    """One line that says what was given, what was wanted and the remedy; exit code 2."""

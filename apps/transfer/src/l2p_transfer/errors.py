"""The exception of the transfer app for what its user can put right."""


class TransferError(ValueError):
    """One line that says what was given, what was wanted and the remedy; exit code 2."""

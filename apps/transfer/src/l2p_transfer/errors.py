"""The exception of the transfer app for what its user can put right."""

from l2p_run.errors import UserError


class TransferError(UserError):
    """One line that says what was given, what was wanted and the remedy; exit code 2."""

"""The exception of plans for what their user can put right."""

from l2p_run.errors import UserError


class PlanError(UserError):
    """One line that says what was given, what was wanted and the remedy; exit code 2."""

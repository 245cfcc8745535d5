"""The exceptions of the ablations for what their user can put right."""

from l2p_run.errors import UserError


class AblateError(UserError):
    """A mistake in the config, or a folder that holds something else. Exit code 2."""


class NotFiniteError(AblateError):
    """An arm was trained, and what it computes is no number. Exit code 3: the run failed, not its input."""

    exit_code = 3

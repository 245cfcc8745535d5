"""The one exception of this package for mistakes that a user can put right."""


class ArchError(ValueError):
    """Says in one line what was given, what was wanted, and the remedy."""

    exit_code = 2  # of a command that it ends

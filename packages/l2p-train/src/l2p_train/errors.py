"""The exceptions of the trainer and the exit codes they map to."""

from __future__ import annotations

from l2p_run.errors import UserError


class TrainError(UserError):
    """A mistake of the user's: a bad key, a missing directory, a batch that does not divide. Exit code 2."""

    exit_code = 2


class NonFiniteLossError(TrainError):
    """The loss became infinite or NaN; the batch was saved. Exit code 3: the run failed, not its input."""

    exit_code = 3


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived, a checkpoint was written, the run ended. Exit code 130 or 143."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"interrupted after step {step}; run the same command again to resume")
        self.exit_code = 128 + signal_number
        self.step = step

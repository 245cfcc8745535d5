"""Replicas of a language model in Ray actors: which of them are there, and the end of one that is broken."""

import time
from collections.abc import Sequence
from typing import Any

from l2p_data.corpus.files import one_line
from l2p_data.errors import DataError

PAUSE = 1.0  # s between two questions whether a lost replica is back


class Replicas:
    """The replicas, and since when each of them has been away."""

    def __init__(self, replicas: Sequence[Any], patience: float) -> None:
        self.all, self._patience = list(replicas), patience
        self._since: dict[Any, float] = {}

    def lost(self, replica: Any) -> None:
        """Wait a little before it is asked again whether it is there.

        Raises:
            DataError: it has been away for too long.
        """
        since = self._since.setdefault(replica, time.monotonic())
        if time.monotonic() - since > self._patience:
            raise DataError(
                f"a replica of the language model has been lost for {self._patience:g} s; give the cluster "
                "back a node that holds it and run again: the answers so far are kept"
            )
        time.sleep(PAUSE)

    def there(self, replica: Any) -> None:
        """Take note that it has answered."""
        self._since.pop(replica, None)

    @property
    def present(self) -> list[Any]:
        """Those that are not known to be lost."""
        return [replica for replica in self.all if replica not in self._since]


def end(replica: Any, error: Exception) -> str:
    """Return in a line why a replica answered with an error of Ray. One whose own code raised it still lives,
    with a model that can answer nothing more: it is killed, and Ray starts another in its place."""
    import ray
    from ray.exceptions import RayTaskError

    if not isinstance(error, RayTaskError):
        return one_line(error, 160)
    ray.kill(replica, no_restart=False)
    return one_line(error.cause, 160)

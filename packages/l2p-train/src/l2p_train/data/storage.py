"""Files at an address ("s3://bucket/run"), with the trainer's own error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from l2p_run.errors import raised_as
from l2p_run.folder import try_lock
from l2p_run.places import Place, is_address
from l2p_run.storage import store

from l2p_train.errors import TrainError

__all__ = ["Place", "Store", "is_address", "one_at_a_time"]


class Store(store.Store):
    """A folder at an address; its failures are `TrainError`."""

    error = TrainError


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold a lock of this machine's processes and threads, as soon as it is free."""
    with raised_as(TrainError), try_lock(lock, wait=True):
        yield

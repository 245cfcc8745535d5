"""A list of jobs that several commands may work through at a time, within a budget of time.

Each job has a folder that one command holds while it works; what another is busy with is left to it, and
waited for at the end. A job that does not fit in what is left of the budget is not begun.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from l2p_run.folder import try_lock

Job = TypeVar("Job")


def work_through(
    jobs: Sequence[Job],
    *,
    is_done: Callable[[Job], bool],
    hold: Callable[[Job, bool], AbstractContextManager[bool]],
    work: Callable[[Job, int], None],
    seconds_left: Callable[[], float],
    after: Callable[[Job], None] = lambda job: None,
) -> int:
    """Do every job that is not done; how many are left when the budget is spent, 0 where all are done.

    Args:
        is_done: asked again before each job, because another command may have done it.
        hold: takes a job and whether to wait; whether it could be had (`held`).
        work: takes a job and how many were left when it began.
        seconds_left: of the budget; a job is expected to take as long as the longest before it.
        after: called when a job is done and no longer held.
    """
    longest, busy = 0.0, 0
    while pending := [job for job in jobs if not is_done(job)]:
        if longest > seconds_left():
            return len(pending)
        job = pending[busy % len(pending)]
        began = time.monotonic()
        with hold(job, busy >= len(pending)) as mine:
            if not mine:
                busy += 1
                continue
            busy = 0
            if not is_done(job):  # by whoever held it before
                work(job, len(pending))
        longest = max(longest, time.monotonic() - began)
        after(job)
    return 0


@contextmanager
def held(folder: Path, *, wait: bool, remedy: str = "choose a writable folder") -> Iterator[bool]:
    """Keep other commands out of a folder by a lock beside it; whether it could be had (always, with `wait`).

    Raises:
        UserError: nothing can be written there.
    """
    with try_lock(folder.with_name(f".{folder.name}.lock"), wait=wait, remedy=remedy) as mine:
        yield mine

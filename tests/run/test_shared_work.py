"""Commands share a list of jobs: each takes what no other is busy with, within its budget."""

import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from l2p_run.folder.shared_work import held, work_through


class Jobs:
    """Jobs that leave a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.order = folder, list[str]()

    def is_done(self, job: str) -> bool:
        return (self.folder / job).is_file()

    def hold(self, job: str, wait: bool) -> AbstractContextManager[bool]:
        return held(self.folder / job, wait=wait)

    def work(self, job: str, left: int) -> None:
        self.order.append(f"{job} of {left}")
        (self.folder / job).touch()

    def through(self, jobs: list[str], seconds: float = 1e9) -> int:
        return work_through(
            jobs, is_done=self.is_done, hold=self.hold, work=self.work, seconds_left=lambda: seconds
        )


def test_what_is_done_is_left_and_the_rest_is_done_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    jobs = Jobs(tmp_path)
    assert jobs.through(["a", "b", "c"]) == 0
    assert jobs.order == ["a of 2", "c of 1"]


def test_what_another_is_busy_with_is_taken_last_and_not_again_when_it_is_done(tmp_path: Path) -> None:
    jobs, begun = Jobs(tmp_path), threading.Event()

    def other() -> None:
        with held(tmp_path / "a", wait=True):
            begun.set()
            while len(jobs.order) < 2:
                time.sleep(0.01)
            time.sleep(0.2)  # by now the command waits for it
            (tmp_path / "a").touch()

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    assert jobs.through(["a", "b", "c"]) == 0
    thread.join()
    assert jobs.order == ["b of 3", "c of 2"]


def test_a_job_is_not_begun_that_the_budget_has_no_room_for(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    assert jobs.through(["a", "b", "c"], seconds=-1.0) == 3, "no second is left: not even the first one"
    assert jobs.order == []
    assert jobs.through(["a", "b", "c"], seconds=0.0) == 2, "the first one took longer than nothing"


def test_a_failure_ends_the_work_and_frees_the_job(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)

    def fail(job: str, left: int) -> None:
        raise MemoryError(job)

    with pytest.raises(MemoryError, match="a"):
        work_through(["a"], is_done=jobs.is_done, hold=jobs.hold, work=fail, seconds_left=lambda: 1.0)
    with held(tmp_path / "a", wait=False) as mine:
        assert mine

"""What a stage may use and what it used: cores, and the peak memory of processes and of GPUs."""

import os
import shutil
import subprocess
import threading
from types import TracebackType
from typing import Self

PERIOD = 0.5  # s between samples
_DRIVER_TOOL = "nvidia-smi"


class MemoryMeter:
    """Samples resident memory while its block runs; `peak_bytes` afterwards.

    Private pages are added up over the processes and shared ones counted once (the largest share), so that
    Ray's object store and forked pages do not count several times.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, memory_of_process_tree())
            if self._stop.wait(PERIOD):
                return


def usable_cores() -> int:
    """Return CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_of_process_tree() -> int:
    """Return bytes in use now by this process and its descendants."""
    import psutil

    me = psutil.Process()
    private, shared = 0, 0
    for process in (me, *me.children(recursive=True)):
        try:
            info = process.memory_info()
        except psutil.Error:  # it ended meanwhile
            continue
        common = getattr(info, "shared", 0)
        private += info.rss - common
        shared = max(shared, common)
    return private + shared


def memory_of_machine() -> int:
    """Return the bytes of memory that this machine has."""
    import psutil

    return int(psutil.virtual_memory().total)


def free_memory_of_machine() -> int:
    """Return bytes that processes can still have, what the system keeps of files included."""
    import psutil

    return int(psutil.virtual_memory().available)


class DeviceMeter:
    """Samples the memory in use on this machine's NVIDIA GPUs while its block runs.

    The driver is asked, because no process knows what the others hold. Without a GPU, and where the driver's
    tool is missing, everything is 0.
    """

    def __init__(self, period: float = PERIOD) -> None:
        self._period, self._peak = period, 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="device-meter", daemon=True)

    def __enter__(self) -> Self:
        if shutil.which(_DRIVER_TOOL):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self) -> int:
        """Return the most bytes in use on one GPU since the last call."""
        with self._lock:
            peak, self._peak = self._peak, 0
            return peak

    def _watch(self) -> None:
        while not self._stop.wait(self._period):
            used = max(memory_of_devices(), default=0)
            with self._lock:
                self._peak = max(self._peak, used)


def memory_of_devices() -> list[int]:
    """Return bytes in use now on each of this machine's NVIDIA GPUs; empty where the driver's tool has no
    answer.
    """
    command = [_DRIVER_TOOL, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return [int(line) << 20 for line in told.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []

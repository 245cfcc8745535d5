"""The processes of a run on one machine: how many fit, and torchrun's environment variables for each."""

from __future__ import annotations

import os
import socket

from l2p_train.errors import TrainError

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""For glibc, on the CPU: memory that a step gives back stays with the process, and the next step need not
have the kernel clear 9,000 pages again (6 % of the miniature's step)."""


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def usable_gpus() -> int:
    """Return the GPUs of this machine, 0 where training runs on the CPU."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose_accelerator() -> None:
    """Tell DeepSpeed, here and in processes to come, when there is no GPU; what the user has set stays."""
    if not usable_gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def processes_for(batch_size: int, most: int) -> int:
    """Return the most processes, up to `most`, that share a batch evenly."""
    return max(count for count in range(1, most + 1) if batch_size % count == 0)


def check_processes(processes: int, gpus: int) -> None:
    """Raise `TrainError` for more processes than `gpus`; a CPU takes any number."""
    if 0 < gpus < processes:
        raise TrainError(
            f"{processes} processes want a GPU each, and this machine has {gpus}; use {gpus} or fewer "
            f"(batch_size stays)"
        )


def process_environments(processes: int, *, on_gpus: bool) -> list[dict[str, str]]:
    """Return the environment of each process."""
    shared = os.environ | {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PYTHONUNBUFFERED": "1",
        "L2P_TRAIN_PARENT": str(os.getpid()),
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // processes))
    if not on_gpus:
        # The model computes in these threads: whatever our own process has, the cores are shared out.
        shared |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads}
        for name, value in KEPT_MEMORY.items():
            shared.setdefault(name, value)
        return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    # Of each process all cores, by default: eight teams would fight over them. A user's choice stays.
    shared.setdefault("OMP_NUM_THREADS", threads)
    if "PYTORCH_ALLOC_CONF" not in shared:  # the newer name of the same, which PyTorch 2.8 does not read
        shared.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]

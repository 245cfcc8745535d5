"""A Ray cluster in place of this machine: with an address in [cluster], images and training run on its nodes.

What a node makes is on shared storage at once, shard by shard and checkpoint by checkpoint, so a lost node
costs the unit that it was working on and changes no result.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from l2p_transfer.config import Config
from l2p_transfer.errors import TransferError


def train_on_cluster(config: Config) -> Any:
    """The training stage as workers of the cluster; a lost node restarts them from the last checkpoint."""
    from l2p_train.ray_train import train_on_ray

    section = config.cluster
    with connected(section.address) as resources:
        gpus = int(resources.get("GPU", 0))
        processes = config.processes or _processes(config.train.batch_size, gpus or int(resources["CPU"]))
        return train_on_ray(
            config.train,
            processes,
            use_gpu=gpus > 0,
            max_failures=section.max_failures,
            cpus_per_process=section.cpus_per_process,
        )


@contextmanager
def connected(address: str) -> Iterator[dict[str, float]]:
    """Connects to the cluster; yields its resources.

    Raises:
        TransferError: nobody answers at the address.
    """
    # Ray would else rebuild the environment of `uv run` for every worker; the nodes have it already.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TransferError(f"cluster.address {address!r} cannot be reached: {reason}") from None
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _processes(batch_size: int, most: int) -> int:
    """As many as divide the batch."""
    return max(count for count in range(1, max(most, 1) + 1) if batch_size % count == 0)

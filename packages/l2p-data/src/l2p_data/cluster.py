"""How much of which Ray cluster the workers of synthesis and of the vLLM engine get."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from l2p_run import cluster
from l2p_run.errors import raised_as

from l2p_data.errors import DataError


@dataclass(frozen=True, kw_only=True)
class RayShare:
    """How much of which Ray cluster the workers get."""

    workers: int | None = None  # None: one per GPU, or as many as the CPUs hold
    threads_per_worker: int = 1  # logical CPUs of each
    gpus_per_worker: float | None = None  # None: 1 if the cluster has GPUs, else 0
    resources: Mapping[str, float] = field(default_factory=dict)  # custom ones of each worker
    address: str | None = None  # a running cluster; None: this machine


@contextmanager
def ray_session(share: RayShare) -> Iterator[Any]:
    """Ray, started quietly on this machine unless it runs already or an address is given; stopped if started
    here."""
    cpus = (share.workers or 1) * share.threads_per_worker
    session = cluster.ray_session(share.address, cpus=cpus, setting="ray_address", without="workers = 0")
    with raised_as(DataError), session as ray:
        import_module("ray.data")
        for name in ("ray.data", "ray"):  # ray.data sets the levels anew when it is imported
            logging.getLogger(name).setLevel(logging.ERROR)
        yield ray


def share_of_cluster(share: RayShare, resources: Mapping[str, float]) -> tuple[int, float]:
    """Return the number of workers, and each one's GPUs."""
    gpus = share.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if resources.get("GPU", 0) >= 1 else 0.0
    cpus_hold = int(resources.get("CPU", 1)) // share.threads_per_worker
    wanted = {"GPU": gpus, **share.resources}
    hold = [math.floor(resources.get(name, 0) / each) for name, each in wanted.items() if each]
    holds = min([cpus_hold, *hold])
    workers = share.workers or holds
    if workers < 1 or workers > holds:
        asked = [f"{each:g} {name}" for name, each in {"CPU": share.threads_per_worker, **wanted}.items()]
        has = [f"{resources.get(name, 0):g} {name}" for name in ("CPU", *wanted)]
        raise DataError(
            f"{workers or 'no'} workers of {', '.join(asked)} do not fit Ray's {', '.join(has)};"
            f" at most {max(holds, 0)} do"
        )
    return workers, gpus

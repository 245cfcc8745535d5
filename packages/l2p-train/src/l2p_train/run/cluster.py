"""A training on a Ray cluster at an address: as many workers as it holds, their progress followed, their
failures in one line.

What a node makes is on shared storage at once, checkpoint by checkpoint, so that a lost node costs the steps
since the last one and changes no result.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_run.cluster import ray_session, workers_that_fit

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.machine.processes import processes_for
from l2p_train.run.run_directory import TrainResult

WATCH_INTERVAL = 5.0  # s between looks at what the training has written
OnEvent = Callable[[Mapping[str, Any]], None]


def train_on_cluster(
    config: TrainConfig,
    address: str,
    *,
    processes: int = 0,
    cpus_per_process: int = 1,
    max_failures: int = 3,
    resources: Mapping[str, float] | None = None,
    on_event: OnEvent | None = None,
    called: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train as workers of a cluster; a lost node restarts them from the last checkpoint.

    Args:
        address: "auto" within a job of the cluster, or HOST:PORT of its head.
        processes: workers; 0: as many as the cluster holds and the batch divides by.
        cpus_per_process: cores that Ray keeps for each worker.
        max_failures: lost workers or nodes that the training survives.
        resources: custom resources of the cluster that each worker takes: which nodes train.
        on_event: called with each new record of the training's metrics.jsonl, from a thread.
        called: what "address", "processes" and "resources" are called where they were given, for errors.

    Raises:
        UserError: nobody answers at the address, or no node has the resources.
        TrainError: the cluster holds fewer processes, or the training failed there.
        NonFiniteLossError: the loss is not a number.
    """
    from l2p_train.run.ray_train import train_on_ray

    names = {"address": "address", "processes": "processes", "resources": "resources", **(called or {})}
    with ray_session(address, setting=names["address"]) as ray, followed(config, on_event):
        held = ray.cluster_resources()
        each = {"CPU": cpus_per_process, **(resources or {})}
        most = workers_that_fit(held, each, setting=names["resources"])
        processes = processes or processes_for(config.batch_size, most)
        if processes > most:
            raise TrainError(
                f"{names['processes']} is {processes}, the cluster holds {most} of them; give {most}"
            )
        from ray.train import TrainingFailedError

        try:
            return train_on_ray(
                config,
                processes,
                use_gpu=held.get("GPU", 0) >= 1,
                max_failures=max_failures,
                cpus_per_process=cpus_per_process,
                resources_per_process=resources or {},
            )
        except TrainingFailedError as error:
            raise failure(error, config.output / "ray") from error


def failure(error: Exception, logs: Path) -> TrainError:
    """Return what Ray's error says at its end, as one of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = lines[-1] if lines else type(error).__name__
    return TrainError(
        f"the training failed on the cluster: {cause}; its logs are in {logs}."
        " Run the same command again to go on from the last checkpoint"
    )


@contextmanager
def followed(train: TrainConfig, on_event: OnEvent | None) -> Iterator[None]:
    """Hand on what the workers write to shared storage: Ray tells the driver nothing until they end."""
    ended = threading.Event()
    before = max((record["time"] for record in _records(train)), default=0.0)

    def watch() -> None:
        seen = before
        while on_event is not None and not ended.wait(WATCH_INTERVAL):
            for record in _records(train):
                if record["time"] > seen:
                    seen = record["time"]
                    on_event(record)

    thread = threading.Thread(target=watch, name="follow-training", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _records(train: TrainConfig) -> list[dict[str, Any]]:
    """Return what the training has reported; with a mirror, until its last checkpoint."""
    from l2p_train.data.storage import Store
    from l2p_train.report.metrics import read_metrics

    if not train.mirror:
        return read_metrics(train.output / "metrics.jsonl")
    try:
        content = Store(train.mirror).read("metrics.jsonl") or b""
    except TrainError:  # the training says so itself, if it lasts
        return []
    return [json.loads(line) for line in content.splitlines()]

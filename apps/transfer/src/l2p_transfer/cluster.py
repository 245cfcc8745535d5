"""A Ray cluster in place of this machine: with an address in [cluster], images, training and the painting of
the evaluation run on its nodes.

What a node makes is on shared storage at once, shard by shard, checkpoint by checkpoint and image by image,
so a lost node costs the unit that it was working on and changes no result.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_run.cluster import ray_session, workers_that_fit
from l2p_train.config import TrainConfig

from l2p_transfer.config import Config
from l2p_transfer.errors import TransferError

WATCH_INTERVAL = 5.0  # s between looks at what the training has written


def train_on_cluster(config: Config, on_event: Callable[[Mapping[str, Any]], None] | None = None) -> Any:
    """The training stage as workers of the cluster; a lost node restarts them from the last checkpoint.

    Args:
        on_event: called with each new record of the training's metrics.jsonl, from a thread.

    Raises:
        TransferError: no cluster at the address, or the training failed there.
        NonFiniteLossError: the loss is not a number.
    """
    from l2p_train.run.ray_train import train_on_ray

    section = config.cluster
    wanted = section.training_resources
    with connected(section.address) as resources, _followed(config.train, on_event):
        each = {"CPU": section.cpus_per_process, **wanted}
        most = workers_that_fit(resources, each, setting="cluster.training_resources")
        processes = config.processes or _processes(config.train.batch_size, most)
        if processes > most:
            raise TransferError(
                f"train.processes is {processes}, the cluster holds {most} of them; give {most}"
            )
        from ray.train import TrainingFailedError

        try:
            return train_on_ray(
                config.train,
                processes,
                use_gpu=resources.get("GPU", 0) >= 1,
                max_failures=section.max_failures,
                cpus_per_process=section.cpus_per_process,
                resources_per_process=wanted,
            )
        except TrainingFailedError as error:
            raise failure(error, config.train.output / "ray") from error


@contextmanager
def painting(config: Config) -> Iterator[dict[str, Any]]:
    """Where the evaluation paints, as arguments of `generate_images`: here, or on the cluster's nodes."""
    from l2p_eval.painting import default_workers

    workers, address = config.evaluate.workers, config.cluster.address
    # Its images come back through a folder that all nodes share; `storage` is for those that share none.
    if not address or workers == 0 or (config.run.storage and workers is None):
        yield {"workers": default_workers() if workers is None else workers}
        return
    with connected(address) as resources:
        wanted = config.cluster.evaluation_resources
        most = workers_that_fit(resources, wanted, setting="cluster.evaluation_resources")
        yield {"executor": "ray", "workers": workers or most, "resources": wanted}


@contextmanager
def connected(address: str) -> Iterator[dict[str, float]]:
    """Connects to the cluster; yields its resources.

    Raises:
        UserError: nobody answers at the address.
    """
    with ray_session(address, setting="cluster.address") as ray:
        yield ray.cluster_resources()


def _processes(batch_size: int, most: int) -> int:
    """As many as divide the batch."""
    return max(count for count in range(1, most + 1) if batch_size % count == 0)


def failure(error: Exception, logs: Path) -> TransferError:
    """What Ray's error says at its end, as one of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = lines[-1] if lines else type(error).__name__
    return TransferError(
        f"the training failed on the cluster: {cause}; its logs are in {logs}."
        " Run the same command again to go on from the last checkpoint"
    )


@contextmanager
def _followed(train: TrainConfig, on_event: Callable[[Mapping[str, Any]], None] | None) -> Iterator[None]:
    """Hands on what the workers write to shared storage: Ray tells the driver nothing until they end."""
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
    """What the training has reported; with a mirror, until its last checkpoint."""
    from l2p_train.data.storage import Store
    from l2p_train.errors import TrainError
    from l2p_train.report.metrics import read_metrics

    if not train.mirror:
        return read_metrics(train.output / "metrics.jsonl")
    try:
        content = Store(train.mirror).read("metrics.jsonl") or b""
    except TrainError:  # the training says so itself, if it lasts
        return []
    return [json.loads(line) for line in content.splitlines()]

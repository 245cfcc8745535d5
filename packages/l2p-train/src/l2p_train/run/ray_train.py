"""The same `train()` under Ray Train: a cluster's workers instead of torchrun's processes.

Our own checkpoints carry the state, so a worker group that Ray starts again after a failure resumes by
calling `train` again; nothing is reported to Ray. `config.output` must be on storage that all nodes share,
or `config.mirror` be given: then it is a directory of each node's own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from l2p_train.config import TrainConfig, config_from_mapping
from l2p_train.errors import NonFiniteLossError, TrainError
from l2p_train.run.mirror import Mirror
from l2p_train.run.run_directory import TrainResult, check_apart, read_result

logger = logging.getLogger(__name__)


def train_on_ray(
    config: TrainConfig,
    processes: int,
    *,
    use_gpu: bool,
    max_failures: int = 3,
    cpus_per_process: int = 1,
    resources_per_process: Mapping[str, float] | None = None,
) -> TrainResult:
    """Train in `processes` Ray workers and return the result.

    Args:
        config: the settings; relative paths are taken from the driver's working directory.
        processes: workers; with `use_gpu` one GPU each.
        use_gpu: NCCL on GPUs, else gloo on CPUs.
        max_failures: how often a lost worker or node may restart the group from the last checkpoint.
        cpus_per_process: cores that Ray keeps for each worker, and OMP_NUM_THREADS there: with
            `config.offload_optimizer` the optimiser steps on so many threads.
        resources_per_process: custom resources of the cluster that each worker takes: which nodes train.

    Raises:
        NonFiniteLossError: the loss is infinite or NaN; not tried again, since it would be so again.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from l2p_train.zero.engine import COLLECTIVE_TIMEOUT

    check_apart(config)
    config.batch_layout(processes)
    if config.offload_optimizer and cpus_per_process == 1:
        logger.warning(
            "offload_optimizer = true and cpus_per_process = 1: the optimiser steps on one thread; "
            "give each process more cores"
        )
    # A worker's working directory is one of Ray's own.
    names = ("model", "corpus", "output", "corpus_cache", "perceptual_features")
    places = {name: getattr(config, name) for name in names}
    absolute: dict[str, Any] = {
        name: place.absolute() for name, place in places.items() if isinstance(place, Path)
    }
    config = replace(config, **absolute)
    mirror = Mirror(config)
    mirror.catch_up()  # the workers have no other way to the model
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config.to_dict(),
        torch_config=TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=int(COLLECTIVE_TIMEOUT.total_seconds())
        ),
        scaling_config=ScalingConfig(
            num_workers=processes,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus_per_process, **(resources_per_process or {})},
        ),
        run_config=RunConfig(
            name="l2p-train",
            **_storage(config, mirror),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    diverged = getattr(trainer.fit(), "return_value", None)  # of Ray Train V2
    if diverged is not None:
        raise NonFiniteLossError(diverged)
    mirror.fetch()
    result = read_result(config)
    if result is None:
        raise TrainError(f"Ray ended the run without a result; its logs are in {config.output / 'ray'}")
    return result


def _storage(config: TrainConfig, mirror: Mirror) -> dict[str, Any]:
    """Return where Ray keeps its notes: like everything else, where all workers can write."""
    if mirror.store is None:
        return {"storage_path": str(config.output / "ray")}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem = PyFileSystem(FSSpecHandler(mirror.store.fs))
    return {"storage_path": mirror.store.path("ray"), "storage_filesystem": filesystem}


def _worker(settings: dict[str, Any]) -> str | None:
    """Train; return what `NonFiniteLossError` says, which all workers raise at the same step.

    An exception would make Ray start the workers again, `max_failures` times, to the same end.
    """
    from l2p_train import train

    try:
        train(config_from_mapping(settings))
    except NonFiniteLossError as error:
        return str(error)
    return None

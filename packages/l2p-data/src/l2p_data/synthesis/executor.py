"""Where shards get made: on Ray Data actors, or in this process. Ray only executes; it keeps no state."""

import dataclasses
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from l2p_data.corpus.files import one_line
from l2p_data.errors import DataError
from l2p_data.synthesis.worker import SynthesisWorker, WorkerSettings

_START_ATTEMPTS = 3


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
    # `uv run` as the driver would make Ray rebuild the environment for every worker; ours are local and have
    # it.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ core writes to our stderr otherwise
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        with _standard_error_held_back():
            _start(ray, share)
    loggers = [
        logging.getLogger(name) for name in ("ray.data", "ray")
    ]  # ray.data configures them at its import
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _start(ray: Any, share: RayShare) -> None:
    if share.address is not None:
        ray.init(share.address, log_to_driver=False, logging_level=logging.ERROR)
        return
    wanted = (share.workers or 1) * share.threads_per_worker
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(
                "local",
                # logical: more workers than cores is the caller's decision
                num_cpus=max(os.cpu_count() or 1, wanted),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=256 << 20,  # images go to disk, not through the store
            )
            return
        except Exception as error:  # Ray gives its own processes 30 s, which a busy machine can exceed
            ray.shutdown()
            if attempt == _START_ATTEMPTS:
                raise DataError(
                    f"Ray did not start here in {_START_ATTEMPTS} attempts ({one_line(error, 120)}); "
                    "run the same command when it is less busy, or with workers = 0, which needs no Ray"
                ) from error


@contextmanager
def _standard_error_held_back() -> Iterator[None]:
    """Keep file descriptor 2 silent, also for C++ code; what was written comes out if the block fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except DataError:
            raise  # says in one line what matters
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def share_of_cluster(share: RayShare, resources: Mapping[str, float]) -> tuple[int, float]:
    """Number of workers, and each one's GPUs."""
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


def run_here(work: list[dict[str, Any]], settings: WorkerSettings) -> Generator[dict[str, Any], None, None]:
    """Ledger entries of the missing shards, made in this process one after the other."""
    worker = SynthesisWorker(settings)
    for item in work:
        yield json.loads(worker({key: [value] for key, value in item.items()})["result"][0])


def run_on_ray(
    work: list[dict[str, Any]], settings: WorkerSettings, share: RayShare
) -> Generator[dict[str, Any], None, None]:
    """Ledger entries of the missing shards, as they get finished, in no particular order."""
    with ray_session(share) as ray:
        workers, gpus = share_of_cluster(share, ray.cluster_resources())
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        results = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
            SynthesisWorker,
            fn_constructor_args=(dataclasses.replace(settings, device="cuda" if gpus else "cpu"),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(work)), max_tasks_in_flight_per_actor=2),
            num_cpus=settings.threads,
            num_gpus=gpus,
            resources=dict(share.resources) or None,
        )
        for row in results.iter_rows():
            yield json.loads(row["result"])

"""Where shards get made: on Ray Data actors, or in this process. Ray only executes; it keeps no state."""

import dataclasses
import json
from collections.abc import Generator, Iterable
from itertools import islice
from typing import Any

from l2p_data.cluster import RayShare, ray_session, share_of_cluster
from l2p_data.synthesis.worker import SynthesisWorker, WorkerSettings, threads_as_found

WAVE = 10_000
"""Shards that Ray is told of at a time: each is a block in its books and some 50 kB of rows. Between two
waves the workers load their model again, which is little beside the 50 shards of each of 200 workers."""


def run_here(
    work: Iterable[dict[str, Any]], settings: WorkerSettings
) -> Generator[dict[str, Any], None, None]:
    """Return ledger entries of the missing shards, made in this process one after the other.

    PyTorch's number of threads is the worker's meanwhile, and afterwards what it was: what this process
    computes later must not depend on whether it has painted a corpus before.
    """
    with threads_as_found():
        worker = SynthesisWorker(settings)
        for item in work:
            yield json.loads(worker({key: [value] for key, value in item.items()})["result"][0])


def run_on_ray(
    work: Iterable[dict[str, Any]], settings: WorkerSettings, share: RayShare
) -> Generator[dict[str, Any], None, None]:
    """Return ledger entries of the missing shards, as they get finished, in no particular order."""
    waiting = iter(work)
    with ray_session(share) as ray:
        workers, gpus = share_of_cluster(share, ray.cluster_resources())
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        settings = dataclasses.replace(settings, device="cuda" if gpus else "cpu")
        while wave := list(islice(waiting, WAVE)):
            results = ray.data.from_items(wave, override_num_blocks=len(wave)).map_batches(
                SynthesisWorker,
                fn_constructor_args=(settings,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=min(workers, len(wave)),
                    # A shard takes minutes and its rows are a few kilobytes: nothing is gained by a second
                    # one that waits with a slow worker while a quick one has none.
                    max_tasks_in_flight_per_actor=1,
                ),
                num_cpus=settings.threads,
                num_gpus=gpus,
                resources=dict(share.resources) or None,
            )
            for row in results.iter_rows():
                yield json.loads(row["result"])

"""Where shards get made: on Ray Data actors, or in this process. Ray only executes; it keeps no state."""

import dataclasses
import json
from collections.abc import Generator
from typing import Any

from l2p_data.cluster import RayShare, ray_session, share_of_cluster
from l2p_data.synthesis.worker import SynthesisWorker, WorkerSettings


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
            compute=ray.data.ActorPoolStrategy(
                size=min(workers, len(work)),
                # A shard takes minutes and its rows are a few kilobytes: nothing is gained by a second one
                # that waits with a slow worker while a quick one has none.
                max_tasks_in_flight_per_actor=1,
            ),
            num_cpus=settings.threads,
            num_gpus=gpus,
            resources=dict(share.resources) or None,
        )
        for row in results.iter_rows():
            yield json.loads(row["result"])

"""The synthesis at scale: 200 workers by simulation, and what the driver itself needs, measured.

    uv run python benchmarks/data_scale.py [--prompts 10000 100000] [--shards 1000 --workers 200 --dying 0.05]

Two answers. The schedule: shards go to workers of random speed as the executor hands them out (one at a
time), some of the workers die and come back, and lose the shard they were at; the wall time is held against
the ideal, which is all work over all speed. A simulation of events: no two hundred machines are at hand. The
driver: its real planning and its real look at the ledger, each size in its own process, in seconds of CPU
time, with the exponent of growth and what follows for 1 M and 100 M prompts. Prints one JSON object.
"""

import argparse
import heapq
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

IN_FLIGHT = 1  # shards that a worker holds: `max_tasks_in_flight_per_actor` of the executor
RESTART = 0.5  # shards' time that a worker is away for when it died: it loads its model again
SPREAD = 0.35  # sigma of the logarithm of a worker's speed
WHOLE = (1_000_000, 100_000_000)  # prompts to extrapolate to
PROMPT = (
    "A weathered fishing boat rests on a pebble beach at low tide, its blue paint peeling in long strips, "
)


@dataclass
class Worker:
    """One of the cluster's: shards a second, and those that it holds, the first one being made."""

    speed: float
    held: list[int]
    life: int = 0  # how often it has died: an event of an earlier life is void
    away: bool = False


def simulate(shards: int, workers: int, dying: float, in_flight: int, seed: int) -> dict[str, float]:
    """Hand out shards until all are made; times are in those of a shard at mean speed."""
    chance = random.Random(seed)
    crew = [Worker(speed=math.exp(chance.gauss(-(SPREAD**2) / 2, SPREAD)), held=[]) for _ in range(workers)]
    ideal = shards / sum(worker.speed for worker in crew)
    waiting, events, now, made, lost = list(range(shards))[::-1], list[Any](), 0.0, 0, 0
    for index in chance.sample(range(workers), round(dying * workers)):
        heapq.heappush(events, (chance.uniform(0, ideal), 1, index, 0))

    def begin(index: int) -> None:
        worker = crew[index]
        if worker.held and not worker.away:
            heapq.heappush(events, (now + 1 / worker.speed, 0, index, worker.life))

    def hand_out() -> None:
        for wanted in range(in_flight):  # the emptiest first
            for index, worker in enumerate(crew):
                if waiting and not worker.away and len(worker.held) == wanted:
                    worker.held.append(waiting.pop())
                    if len(worker.held) == 1:
                        begin(index)

    hand_out()
    while made < shards:
        now, kind, index, life = heapq.heappop(events)
        worker = crew[index]
        if kind == 0 and life == worker.life:
            worker.held.pop(0)
            made += 1
            begin(index)
        elif kind == 1:
            lost += bool(worker.held)
            waiting.extend(reversed(worker.held))
            worker.held, worker.away, worker.life = [], True, worker.life + 1
            heapq.heappush(events, (now + RESTART, 2, index, 0))
        elif kind == 2:
            worker.away = False
        hand_out()
    return {
        "wall": round(now, 3),
        "ideal": round(ideal, 3),
        "ratio": round(now / ideal, 3),
        "shards_lost": lost,
    }


def driver(prompts: int) -> dict[str, float]:
    """What the driver takes for so many prompts: planning, the work it hands to Ray, and reading a ledger of
    finished shards. In this process, whose peak of memory tells."""
    import polars as pl
    from l2p_data.corpus.dataset import shard_name
    from l2p_data.corpus.identity import digest_of
    from l2p_data.synthesis.config import SynthesisConfig
    from l2p_data.synthesis.executor import WAVE
    from l2p_data.synthesis.ledger import finished_shards, ledger_path
    from l2p_data.synthesis.synthesize import plan_shards

    frame = pl.DataFrame({"id": [f"{number:016x}" for number in range(prompts)]}).with_columns(
        (pl.lit(PROMPT) + pl.col("id") + PROMPT).alias("prompt"),
        *(
            pl.lit(name).alias(name)
            for name in ("language", "category", "subclass", "superclass", "created_by")
        ),
    )
    before = _peak()
    started = time.process_time()
    shards = plan_shards(frame, SynthesisConfig(model="model", output="corpus"))
    identity = digest_of(shards.ids())
    work = ({"shard": index, "rows": json.dumps(shards[index])} for index in range(len(shards)))
    while wave := list(islice(work, WAVE)):  # as the executor hands it out
        assert wave
    planned = time.process_time() - started
    memory = _peak() - before
    assert identity
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder)
        for index in range(len(shards)):
            path = ledger_path(corpus, index)
            path.parent.mkdir(exist_ok=True)
            name = shard_name(index)
            (corpus / name).write_bytes(b"x")
            entry = {"file": name, "rows": 64, "bytes": 1, "sha256": "0" * 64}
            path.write_text(json.dumps({"shard": index, "failures": [], "file": entry}))
        size = sum(path.stat().st_size for path in ledger_path(corpus, 0).parent.iterdir())
        started = time.process_time()
        found = finished_shards(corpus, len(shards))
        read = time.process_time() - started
    assert len(found) == len(shards)
    return {
        "plan_seconds": round(planned, 3),
        "prompts_mb": round(frame.estimated_size() / 1e6, 2),  # the table itself, which a run has read
        "memory_mb": round(memory / 1e6, 2),  # beside it
        "ledger_seconds": round(read, 4),
        "ledger_mb": round(size / 1e6, 4),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def growth(sizes: list[int], measured: dict[int, dict[str, float]]) -> Iterator[tuple[str, dict[str, float]]]:
    """The exponent between the smallest and the largest size, and what it says of `WHOLE`."""
    least, most = min(sizes), max(sizes)
    for name, value in measured[most].items():
        exponent = math.log(value / max(measured[least][name], 1e-9)) / math.log(most / least)
        said = {f"at {count:,}": round(value * (count / most) ** exponent, 1) for count in WHOLE}
        yield name, {"exponent": round(exponent, 2), **said}


def main() -> int:
    """Simulate, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--dying", type=float, default=0.05, help="share of the workers (default 0.05)")
    parser.add_argument("--seeds", type=int, default=20, help="simulations (default 20)")
    parser.add_argument("--driver", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.driver:
        print(json.dumps(driver(options.driver)))
        return 0
    schedule = {}
    for name, dying, in_flight in (
        ("as the executor does it", options.dying, IN_FLIGHT),
        ("nobody dies", 0.0, IN_FLIGHT),
        ("two shards a worker", options.dying, 2),
    ):
        runs = [
            simulate(options.shards, options.workers, dying, in_flight, seed) for seed in range(options.seeds)
        ]
        schedule[name] = {
            key: round(sum(run[key] for run in runs) / len(runs), 3)
            for key in ("ratio", "wall", "shards_lost")
        }
    measured = {}
    for count in options.prompts:
        command = [sys.executable, __file__, "--driver", str(count)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        measured[count] = json.loads(told)
    result = {
        "schedule": {"shards": options.shards, "workers": options.workers, **schedule},
        "driver": {f"{count:,} prompts": values for count, values in measured.items()},
        "growth": dict(growth(options.prompts, measured)) if len(options.prompts) > 1 else {},
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What each ZeRO stage keeps per process, against the estimate of --dry-run.

    uv run python benchmarks/train_memory.py [--processes 4] [--dim 256] [--blocks 12] [--trainable 2]

For every stage a group of processes trains one step of an untrained model in bf16 and counts the bytes of all
tensors that are alive between two steps: weights, masters, Adam moments, and what a stage sets aside for
good: ZeRO 1 its float32 gradients, ZeRO 3 those of its share, its bucket and, gathered, all weights of at
most 10^5 elements. Other gradients, buckets and gathered weights exist during a step only and are left out of
the estimate, which counts a GPU's. Also
the peak of the resident set while the model is loaded, over the memory before: what `zero.Init` saves.
Prints one JSON object; ratios are to stage 0.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PERSISTENT_ELEMENTS = 10**5  # DeepSpeed's stage3_param_persistence_threshold


def resident_mb() -> float:
    """Return the resident set of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class PeakMemory:
    """The largest resident set inside a `with` block, over that at its start, MB."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = resident_mb()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, resident_mb())
            time.sleep(0.002)

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, resident_mb()) - self.start


def tensor_mb() -> float:
    """Return the bytes of all live tensors of at least 4 kB, each storage once, MB."""
    import torch

    gc.unfreeze()
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(size for size in storages.values() if size >= 4096) / 1e6


def child(settings: dict[str, Any], report: Path) -> None:
    """Train one step and write what this process holds."""
    import torch
    from l2p_train import config_from_mapping
    from l2p_train.trainer import Session
    from l2p_train.zero.engine import attention_for_device, distributed, load_model

    torch.set_num_threads(1)
    config = config_from_mapping(settings)
    with distributed() as (rank, processes), attention_for_device():
        with PeakMemory() as loading:
            model = load_model(config)
        del model
        gc.collect()
        before = tensor_mb()
        session = Session(config, rank, processes)
        session.train_step(0, session.maker.batches(0))
        session.corpus._cache.clear()
        report.write_text(json.dumps({"state": tensor_mb() - before, "loading": loading.peak}))


def run_group(settings: dict[str, Any], processes: int, folder: Path) -> list[dict[str, float]]:
    """Run `child` in forked processes; return their reports."""
    from l2p_train.machine.processes import free_port

    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            try:
                os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
                child(settings, folder / f"report-{rank}.json")
                os._exit(0)
            except BaseException as error:
                print(f"process {rank}: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
        children.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in children):
        sys.exit("a process failed")
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(processes)]


def measure_stage(stage: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return what a process keeps at a ZeRO stage, and what the estimate says, MB."""
    from l2p_train import config_from_mapping, estimate
    from l2p_train.memory import meta_model
    from l2p_train.zero.settings import bucket_elements

    settings = {
        "model": str(folder / "model"),
        "corpus": str(folder / "corpus"),
        "output": str(folder / f"stage-{stage}"),
        "batch_size": options.processes,
        "trainable": options.trainable,
        "zero_stage": stage,
        "tensorboard": False,
    }
    reports = run_group(settings, options.processes, folder)
    config = config_from_mapping(settings)
    needs = estimate(config, options.processes)
    kept = needs.weights_gb + needs.optimizer_gb
    if stage == 1:  # 4 of the 6 bytes: those in bf16 go
        kept += needs.gradients_gb * 4 / 6
    if stage == 3:
        sizes = [parameter.numel() for parameter in meta_model(config)[0].parameters()]
        whole = sum(size for size in sizes if size <= PERSISTENT_ELEMENTS)
        kept += needs.gradients_gb + 4 * bucket_elements(needs.plan.trainable_count) / 1e9 + 2 * whole / 1e9
    return {
        "state_mb": round(max(report["state"] for report in reports), 1),
        "estimate_mb": round(1e3 * kept, 1),
        "peak_of_loading_mb": round(max(report["loading"] for report in reports), 1),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--trainable", type=int, default=2)
    options = parser.parse_args()
    os.environ["DS_ACCELERATOR"], os.environ["OMP_NUM_THREADS"] = "cpu", "1"
    # Imported once, before the forks: no thread runs yet.
    import deepspeed  # noqa: F401
    import l2p_train.trainer  # noqa: F401
    from train_inputs import write_inputs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pid = os.fork()  # torch's threads start with the first operation: keep them out of this process
        if pid == 0:
            write_inputs(folder, dim=options.dim, blocks=options.blocks, size=32, images=16)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            return 1
        rows = {f"stage {stage}": measure_stage(stage, options, folder) for stage in range(4)}
    for row in rows.values():
        row["of_stage_0"] = round(row["state_mb"] / rows["stage 0"]["state_mb"], 3)
        row["measured_over_estimate"] = round(row["state_mb"] / row["estimate_mb"], 3)
    print(json.dumps({"processes": options.processes, **rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Loading weights from a slow mount: plain reads (`disable_mmap`) against memory maps, in time and memory.

    uv run python benchmarks/arch_slow_reads.py [--megabytes 200 --latency 5 --bandwidth 200 --in-flight 4]

The mount is FUSE's, real, on this machine (slow_mount.py: Linux and root): every request of at most 128 KiB
waits, as one over a network does. Each load is a process of its own on a fresh mount, so that nothing is in
the page cache; the two kinds take turns. "touched" includes reading every weight once, which a map leaves for
the first forward. The surgery, which reads plainly in any case, comes along. Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from slow_mount import slow_mount


def load(model: Path) -> dict[str, float]:
    """Load a model in this process; seconds and what it holds at most."""
    import torch
    from l2p_arch import L2PTransformer

    before = _memory()
    started = time.perf_counter()
    transformer = L2PTransformer.from_pretrained(
        model / "transformer", dtype=torch.bfloat16, local_files_only=True, use_safetensors=True
    )
    loaded = time.perf_counter() - started
    for parameter in transformer.parameters():
        parameter.detach().view(torch.uint8)[..., ::4096].sum()  # a byte of every page
    touched = time.perf_counter() - started
    after = _memory()
    return {
        "loaded": loaded,
        "touched": touched,
        "peak_mb": (after["VmHWM"] - before["VmRSS"]) / 1000,
        "anonymous_mb": (after["RssAnon"] - before["RssAnon"]) / 1000,
    }


def _memory() -> dict[str, int]:
    """kB that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(":", 1) for line in lines if line.startswith(("Vm", "Rss")))
    return {name: int(value.split()[0]) for name, value in pairs}


def in_own_process(model: Path, mapped: bool) -> dict[str, float]:
    """`load` in a process of its own."""
    environment = os.environ | {"L2P_DISABLE_MMAP": "0" if mapped else "1"}
    command = [sys.executable, __file__, "--load", str(model)]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


def surgery_seconds(source: Path, out: Path) -> float:
    """Convert from the mount onto this disk."""
    from l2p_arch import convert

    started = time.perf_counter()
    convert(source, out, patch_size=16, head_channels=(16, 32, 64, 128), overwrite=True)
    return time.perf_counter() - started


def write_models(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """A source and a model of about so many MB of bfloat16 weights, in one shard."""
    from l2p_arch import convert
    from l2p_mini.architecture import write_untrained_source

    dim = 512  # a block of Z-Image has about 12.3 dim^2 weights
    layers = max(1, round(megabytes * 1e6 / 2 / (12.3 * dim**2)))
    source = write_untrained_source(
        folder / "source", seed=0, dim=dim, n_layers=layers, n_heads=16, n_kv_heads=16
    )
    convert(source, folder / "model", patch_size=16, head_channels=(16, 32, 64, 128), dtype="bfloat16")
    return source, folder / "model"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--latency", type=float, default=5.0, help="ms before each answer (default 5)")
    parser.add_argument("--bandwidth", type=float, default=200.0, help="MB/s of a request (default 200)")
    parser.add_argument("--in-flight", type=int, default=4, help="requests answered at a time (default 4)")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(options.load)))
        return 0
    mount: dict[str, Any] = {
        "latency": options.latency / 1000,
        "bandwidth": options.bandwidth * 1e6,
        "in_flight": options.in_flight,
    }
    found: dict[str, list[dict[str, float]]] = {"memory maps": [], "plain reads": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, model = write_models(folder, options.megabytes)
        size = sum(path.stat().st_size for path in (model / "transformer").glob("*.safetensors"))
        for _ in range(options.turns):
            for kind, runs in found.items():
                with slow_mount(model, folder / "slow", **mount) as slow:
                    runs.append(in_own_process(slow, kind == "memory maps"))
        local = {kind: in_own_process(model, kind == "memory maps") for kind in found}
        with slow_mount(source, folder / "slow", **mount) as slow:
            surgery = surgery_seconds(slow, folder / "converted")
    slowly = {
        kind: {key: median(run[key] for run in runs) for key in runs[0]} for kind, runs in found.items()
    }
    maps, reads = slowly["memory maps"], slowly["plain reads"]
    result = {
        "mount": {"kind": "FUSE", "megabytes": round(size / 1e6, 1), **vars(options)},
        "slow": slowly,
        "local": local,
        "reads_over_maps": round(reads["touched"] / maps["touched"], 3),
        "surgery_seconds": round(surgery, 2),
        "surgery_over_reads": round(surgery / reads["touched"], 3),
    }
    print(json.dumps(result, indent=1, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())

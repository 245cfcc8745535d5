"""The GPU's hour: what this project assumes about a GPU, measured on one in at most ten minutes.

    python benchmarks/gpu.py --out gpu.json            on a GPU, at the true width of Z-Image
    python benchmarks/gpu.py --small                   the same parts, small, on a CPU

It needs a checkout and a Python with torch, diffusers, transformers, accelerate, einops, numpy and pillow;
this project's packages are read from the checkout, and no weights: they are random. pytest and tokenizers add
tests/arch/test_accelerator.py. README.md in this folder says how to take the wheels along.

Every part (gpu_parts.py) has a budget of seconds, and is reported as skipped, with the reason, where it does
not fit, is out of memory or is not supported. Prints one JSON object; --out has it after every part.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_bench import SMALL, TRUE, Bench, one_line
from gpu_parts import load_libraries, parts

import torch  # isort: skip


def main() -> int:
    """Run the parts and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--device", help="cuda, cpu; default: a GPU where there is one")
    parser.add_argument("--seconds", type=int, default=570, help="for everything (default 570)")
    parser.add_argument("--only", action="append", metavar="PART", help="these parts; can be repeated")
    parser.add_argument("--out", type=Path, help="a JSON file, written after every part")
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(SMALL if options.small else TRUE, device)
    started, results = time.perf_counter(), dict[str, Any]()
    load_libraries()
    patience = 3 if options.small else 1
    for name, seconds, run in parts(bench):
        budget = patience * seconds
        left = int(options.seconds - (time.perf_counter() - started))
        if options.only and not any(wanted in name for wanted in (*options.only, "machine")):
            continue
        results[name] = _guarded(run, min(budget, left), budget)
        bench.empty()
        print(f"{name}: {results[name]['took']} s", file=sys.stderr, flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    return 0


def _guarded(run: Callable[[dict[str, Any]], None], seconds: int, wanted: int) -> dict[str, Any]:
    """What a part has found in its time, and the reason if that is not all."""
    if seconds < min(10, wanted):
        return {"skipped": f"no time is left for it; it may take {wanted} s", "took": 0.0}

    def too_long(*_: object) -> None:
        raise TimeoutError(f"it took longer than its {seconds} s")

    started, found = time.perf_counter(), dict[str, Any]()
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        run(found)
    except Exception as error:  # one part must not cost the others: its reason is the result
        found["skipped"] = one_line(error)
    finally:
        signal.alarm(0)
    return {**found, "took": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    sys.exit(main())

"""Surgery against `cp`: time for the same bytes in the same run, and peak resident memory.

    python benchmarks/arch_surgery.py --layers 30      # full size: 12.3 GB of random weights

Writes a Z-Image pipeline directory of full width to a temporary folder, then copies its transformer with `cp`
and converts it with `l2p-arch convert` by turns, each followed by `sync` and removed again (twice the size is
the most on the disk at once), and prints one line of JSON with all times and the ratio of the medians. The
conversion's times include the start and end of Python and all imports, most of which pass while the disk
copies; `import_seconds` is what they take alone.
"""

import argparse
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("l2p-arch"))
CONFIG: dict[str, Any] = {
    "_class_name": "ZImageTransformer2DModel",
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 16,
    "dim": 3840,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
}


def write_source(directory: Path, layers: int, shard_bytes: int) -> None:
    """A pipeline directory whose transformer has full-width random weights and whose other parts are
    empty."""
    import torch
    from diffusers import ZImageTransformer2DModel
    from l2p_arch.files.tensor_writing import PlannedTensor, write_directory

    config = CONFIG | {"n_layers": layers}
    for name in ("transformer", "text_encoder", "tokenizer", "scheduler"):
        (directory / name).mkdir(parents=True)
    (directory / "transformer/config.json").write_text(json.dumps(config))
    index = {name: ["none", "none"] for name in ("transformer", "text_encoder", "tokenizer", "scheduler")}
    (directory / "model_index.json").write_text(json.dumps({"_class_name": "ZImagePipeline", **index}))
    with torch.device("meta"):
        state = ZImageTransformer2DModel(**{k: v for k, v in config.items() if k[0] != "_"}).state_dict()

    pool = (0.02 * torch.randn(4_194_301)).bfloat16()  # a prime's worth, so that no two rows are alike

    def random(shape: tuple[int, ...]) -> Any:
        size = math.prod(shape)
        return lambda: pool.repeat(-(-size // len(pool)))[:size].reshape(shape)

    plan = [
        PlannedTensor(name=name, dtype="BF16", shape=tuple(value.shape), origin=random(tuple(value.shape)))
        for name, value in state.items()
    ]
    write_directory(directory / "transformer", plan, max_shard_bytes=shard_bytes)


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True)
    subprocess.run(["sync"], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layers", type=int, default=4, help="main blocks of 0.36 GB; 30 is full size (default 4)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write (default: the temporary folder)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, copy, out = (Path(folder) / name for name in ("source", "copy", "out"))
        write_source(source, arguments.layers, 5 << 30)
        size = sum(path.stat().st_size for path in (source / "transformer").iterdir())
        subprocess.run(["sync"], check=True)  # the source's own dirty pages are nobody's time
        idle = timed([sys.executable, "-c", "import l2p_arch.model"])
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        copied, converted, size_out = [], [], 0
        for _ in range(arguments.repeats):
            copied.append(timed(["cp", "-r", str(source / "transformer"), str(copy)]))
            shutil.rmtree(copy)
            converted.append(timed([COMMAND, "convert", str(source), str(out)]))
            size_out = sum(path.stat().st_size for path in (out / "transformer").iterdir())
            shutil.rmtree(out)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    result = {
        "gigabytes": round(size / 1e9, 2),
        "gigabytes_out": round(size_out / 1e9, 2),
        "cp_seconds": [round(value, 2) for value in copied],
        "convert_seconds": [round(value, 2) for value in converted],
        "import_seconds": round(idle, 2),
        "convert_over_cp": round(statistics.median(converted) / statistics.median(copied), 2),
        "peak_rss_gib": round(peak / 2**20, 2),
        "import_rss_gib": round(before / 2**20, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

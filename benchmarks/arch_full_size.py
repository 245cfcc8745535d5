"""A model of Z-Image's full size on a CPU: surgery, loading and one forward, beside what is planned for them.

    uv run python benchmarks/arch_full_size.py --layers 30      # 12.3 GB of random weights; 25 GB of disk

Writes a source of full width (`arch_surgery.py`), converts it, and then, in a process of its own for each way
to read (memory maps, plain reads), loads the model in bfloat16 and runs it twice on one image. "anonymous" is
memory that the process has alone; pages of a mapped file come on top, and the system may take them back. One
JSON object is printed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from arch_surgery import CONFIG, timed, write_source

COMMAND = str(Path(sys.executable).with_name("l2p-arch"))
CAPTION_TOKENS = 128
WAYS = {"maps": (), "plain": ("--disable-mmap",)}


def planned(layers: int, side: int) -> dict[str, float]:
    """What counting on the meta device says of one forward in bfloat16."""
    import torch
    from l2p_arch import L2PTransformer
    from l2p_eval.efficiency import count

    config = {key: value for key, value in CONFIG.items() if key[0] != "_"} | {"n_layers": layers}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = L2PTransformer("z-image", config)
        pixels, caption = torch.empty(1, 3, side, side), torch.empty(CAPTION_TOKENS, CONFIG["cap_feat_dim"])
        sigma = torch.empty(1, dtype=torch.float32)
    torch.set_default_dtype(torch.float32)
    counted = count(lambda: model(pixels, sigma, [{"caption": caption}]), model)
    return {
        "weights_gb": counted.weight_bytes / 1e9,
        "activations_gb": counted.peak_activation_bytes / 1e9,
        "tflop": counted.flops / 1e12,
    }


def measured(model: Path, side: int, disable_mmap: bool) -> dict[str, float]:
    """Loads and runs, in this process."""
    import torch
    from l2p_arch import L2PTransformer

    before, started = _memory(), time.perf_counter()
    loaded = L2PTransformer.from_pretrained(
        model / "transformer", torch_dtype=torch.bfloat16, disable_mmap=disable_mmap
    ).eval()
    found = {"load_seconds": time.perf_counter() - started}
    found["load_peak_anonymous_gb"] = _peak_anonymous() - before
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, side, side, generator=generator).bfloat16()
    caption = torch.randn(CAPTION_TOKENS, CONFIG["cap_feat_dim"], generator=generator).bfloat16()
    for turn in ("first", "second"):
        started = time.perf_counter()
        with torch.inference_mode():
            velocity = loaded(pixels, torch.tensor([0.5]), [{"caption": caption}])
        found[f"{turn}_forward_seconds"] = time.perf_counter() - started
    assert velocity.shape == pixels.shape and bool(velocity.isfinite().all())
    return found | {"peak_anonymous_gb": _peak_anonymous() - before}


def _memory() -> float:
    """GB that this process has alone now."""
    return _status()["RssAnon"]


def _peak_anonymous() -> float:
    """GB that this process had alone at most: its whole peak, less the pages of files that it has now."""
    status = _status()
    return max(status["RssAnon"], status["VmHWM"] - status["RssFile"])


def _status() -> dict[str, float]:
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) / 1e6 for words in lines if words[-1] == "kB"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--layers", type=int, default=2, help="main blocks of 0.36 GB; 30 is full size (default 2)")
    add("--side", type=int, default=256, help="px of the image (default 256)")
    add("--folder", type=Path, default=None, help="where to write (default: the temporary folder)")
    ways = "how to read the weights (default: both; plain reads hold the last shard twice)"
    add("--reads", nargs="+", choices=WAYS, default=list(WAYS), help=ways)
    add("--model", type=Path, help=argparse.SUPPRESS)  # of a process that loads and runs
    add("--disable-mmap", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model:
        print(json.dumps(measured(options.model, options.side, options.disable_mmap)))
        return
    result: dict[str, Any] = {"layers": options.layers, "planned": planned(options.layers, options.side)}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        started = time.perf_counter()
        write_source(source, options.layers, 5 << 30)
        result["source_seconds"] = time.perf_counter() - started
        result["surgery_seconds"] = timed([COMMAND, "convert", str(source), str(out)])
        files = (out / "transformer").glob("*.safetensors")
        result["file_gb"] = sum(path.stat().st_size for path in files) / 1e9
        for name in options.reads:
            command = [
                sys.executable,
                __file__,
                "--model",
                str(out),
                "--side",
                str(options.side),
                *WAYS[name],
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result[name] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""Put a trained pixel miniature in the place of the one that ships.

    uv run python scripts/ship_pixel_model.py runs/mini-long/model

Weights and configs are the run's. The aligner's large maps, which compute in float32, are stored in float16:
half the bytes, and the pictures of the model that ships moved by 0.16 grey levels on average. The card,
README.md, and the sampling options, sampling.json, stay as they are: write them by hand, as measured.
"""

import argparse
import shutil
from pathlib import Path

import torch
from l2p_mini.paths import PIXEL_MODEL
from safetensors import safe_open
from safetensors.torch import save_file

WEIGHTS = Path("transformer", "diffusion_pytorch_model.safetensors")
LARGE = 1000  # values; what is smaller stays as it is
LEFT_OUT = ("README.md", "sampling.json", "surgery_report.json", "training.json")


def halved(path: Path) -> None:
    """Store a file's large float32 tensors in float16; a value that float16 cannot hold ends the command."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and tensor.numel() > LARGE:
            half = tensor.half()
            if not half.isfinite().all():
                raise SystemExit(f"{name} has values that float16 does not hold; ship it as it is")
            tensors[name] = half
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a run's model directory")
    parser.add_argument("-o", "--output", type=Path, default=PIXEL_MODEL, help="default: the one that ships")
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    if not (model / WEIGHTS).is_file():
        parser.error(
            f"{arguments.model} is no pixel model: it has no {WEIGHTS}; give a run's model directory"
        )
    for found in sorted(model.rglob("*")):
        place = arguments.output / found.relative_to(model)
        if found.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif found.name not in LEFT_OUT:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, place)
    halved(arguments.output / WEIGHTS)
    size = sum(file.stat().st_size for file in arguments.output.rglob("*") if file.is_file())
    print(f"{arguments.output}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

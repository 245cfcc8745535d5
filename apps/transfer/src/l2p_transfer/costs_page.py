"""The table of docs/costs.md, one column a config:

uv run python -m l2p_transfer.costs_page configs/z-image-1k.toml configs/flux-1k.toml ...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from l2p_transfer.config import Config, load_config
from l2p_transfer.costs import Costs, source_passes
from l2p_transfer.plan import ModelPlan, make_plan

ROWS = (
    "parameters, of which train",
    "one forward of the source, of the L2P model, one training step of an image (TFLOP)",
    "**images**: steps of the source, GPU hours",
    "**training**, with checkpointing: GPU hours",
    "**evaluation**, GenEval of both models: GPU hours",
    "together, on 8 GPUs",
    "GPU memory of images, of training on 8 GPUs (GB)",
    "ZeRO stage for that",
    "download (GB)",
    "disk in all: source, corpus, two models, checkpoints, embeddings (GB)",
)
NAMES = {
    "Z-Image-Turbo": "Z-Image-Turbo",
    "FLUX.1-dev": "FLUX.1 [dev]",
    "Qwen-Image": "Qwen-Image",
    "stable-diffusion-3.5-large": "SD3.5 Large",
}
"""Names of source directories, for people."""


def column(config: Config, model: ModelPlan) -> list[str]:
    """The cells of one config, in the order of `ROWS`, from its plan."""
    costs: Costs = model.costs
    hours, tflop, memory = costs.gpu_hours, costs.tflop, costs.gpu_memory_gb
    total = sum(hours.values())
    steps = config.source.num_inference_steps
    guided = ", guided" if source_passes(config, model.family) > steps else ""
    return [
        f"{(model.trainable + model.frozen) / 1e9:.2f} B, {model.trainable / 1e9:.2f} B",
        f"{tflop['source']}, {tflop['l2p']}, {tflop['step']}",
        f"{steps}{guided}: {hours['images']}",
        f"{hours['training']}",
        f"{hours['evaluation']}",
        f"{total:.0f} h, about {total / model.processes:.0f} h",
        f"{memory['images']:.1f}, {memory['training']:.1f}",
        f"{config.train.zero_stage}",
        f"{costs.disk_gb['source']:.0f}",
        f"{sum(costs.disk_gb.values()):.0f}",
    ]


def table(paths: Sequence[Path]) -> str:
    """Markdown.

    Raises:
        TransferError: no such config, or a bad one.
    """
    heads, columns = [""], [list(ROWS)]
    for path in paths:
        config = load_config(path)
        model = make_plan(config).model
        assert model is not None, f"{path} names no family"
        heads.append(NAMES.get(config.source.model.name, config.source.model.name))
        columns.append(column(config, model))
    rows = [heads, ["---"] * len(heads), *zip(*columns, strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]]))

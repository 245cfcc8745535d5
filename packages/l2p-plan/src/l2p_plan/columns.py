"""Plans side by side as a Markdown table, one column a transfer: the table of docs/costs.md."""

from collections.abc import Sequence

from l2p_plan.costs import Costs, source_passes
from l2p_plan.model import ModelPlan
from l2p_plan.transfer import Transfer

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


def column(transfer: Transfer, model: ModelPlan) -> list[str]:
    """Return the cells of one transfer, in the order of `ROWS`, from its plan."""
    costs: Costs = model.costs
    hours, tflop, memory = costs.gpu_hours, costs.tflop, costs.gpu_memory_gb
    total = sum(hours.values())
    steps = transfer.source.num_inference_steps
    guided = ", guided" if source_passes(transfer, model.family) > steps else ""
    return [
        f"{(model.trainable + model.frozen) / 1e9:.2f} B, {model.trainable / 1e9:.2f} B",
        f"{tflop['source']}, {tflop['l2p']}, {tflop['step']}",
        f"{steps}{guided}: {hours['images']}",
        f"{hours['training']}",
        f"{hours['evaluation']}",
        f"{total:.0f} h, about {total / model.processes:.0f} h",
        f"{memory['images']:.1f}, {memory['training']:.1f}",
        f"{transfer.train.zero_stage}",
        f"{costs.disk_gb['source']:.0f}",
        f"{sum(costs.disk_gb.values()):.0f}",
    ]


def table(columns: Sequence[tuple[str, list[str]]]) -> str:
    """Return Markdown.

    Args:
        columns: heading and cells of each transfer.
    """
    heads = ["", *(head for head, _ in columns)]
    rows = [heads, ["---"] * len(heads), *zip(ROWS, *(cells for _, cells in columns), strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)

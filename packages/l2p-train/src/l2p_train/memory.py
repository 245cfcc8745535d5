"""What a run needs before it starts: parameters, tokens, memory per GPU, from the meta device (`--dry-run`).

Counted: weights, gradients, float32 masters, Adam moments, EMA, saved activations. Not counted: the
allocator's slack, workspaces and communication buffers; leave 10 to 20 %. Activations follow measurements of
eager bf16 on Z-Image (6.155 B, 4352 tokens): a trainable block saves 45, a frozen one 30 values per token and
channel; the Detailer Head is counted from its layers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.freeze import FreezePlan, plan_for_model

TRAINABLE_BLOCK_VALUES = 45  # saved values per token and channel
FROZEN_BLOCK_VALUES = 30
CHECKPOINTED_BLOCK_VALUES = 1  # its input


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Counts and GB (10^9 bytes) per GPU."""

    plan: FreezePlan
    processes: int
    image_tokens: int  # per image
    tokens: int  # per image, caption included
    images_per_forward: int
    weights_gb: float
    gradients_gb: float
    optimizer_gb: float  # masters, Adam moments, EMA
    host_gb: float  # of these, what offload moves to the host
    activations_gb: float
    checkpoint_gb: float  # one checkpoint on disk
    assumptions: tuple[str, ...]

    @property
    def total_gb(self) -> float:
        """GPU memory per process."""
        return self.weights_gb + self.gradients_gb + self.optimizer_gb - self.host_gb + self.activations_gb

    def text(self) -> str:
        """Return the estimate as a table with its assumptions."""
        lines = [
            self.plan.table(),
            "",
            f"tokens per image       {self.tokens} ({self.image_tokens} of the image)",
            f"images per forward     {self.images_per_forward} per process, {self.processes} processes",
            "GB per process:",
            f"  weights              {self.weights_gb:9.3f}",
            f"  gradients            {self.gradients_gb:9.3f}",
            f"  masters, Adam, EMA   {self.optimizer_gb:9.3f}" + ("  (on the host)" if self.host_gb else ""),
            f"  saved activations    {self.activations_gb:9.3f}",
            f"  total                {self.total_gb:9.3f}",
            f"checkpoint on disk     {self.checkpoint_gb:9.3f} GB",
            *(f"- {assumption}" for assumption in self.assumptions),
        ]
        return "\n".join(lines)


def estimate(
    config: TrainConfig, processes: int = 1, *, height: int | None = None, width: int | None = None
) -> Estimate:
    """Return what a run with `config` needs; reads configs and headers only.

    Args:
        config: the run's settings.
        processes: GPUs.
        height, width: px; by default `config.resolution`, else the size of the corpus' first image.
    """
    micro, accumulation = config.batch_layout(processes)
    model, channels = _meta_model(config)
    plan = plan_for_model(
        model,
        trainable=config.trainable,
        train_patterns=config.train_patterns,
        freeze_patterns=config.freeze_patterns,
    )
    height, width = (height, width) if height and width else _image_size(config)
    image_tokens = (height // model.patch_size) * (width // model.patch_size)
    tokens = image_tokens + min(config.max_sequence_length, 256)
    value = 2 if config.precision == "bf16" else 4
    parts = _state_bytes(config, plan, processes, accumulation, value)
    activations = micro * (
        _trunk_values(config, model, plan, tokens, channels) + _head_values(model, height, width, channels)
    )
    return Estimate(
        plan=plan,
        processes=processes,
        image_tokens=image_tokens,
        tokens=tokens,
        images_per_forward=micro,
        activations_gb=activations * value / 1e9,
        checkpoint_gb=plan.trainable_count * (16 if config.ema_decay else 12) / 1e9,
        assumptions=(
            f"{config.precision} weights, float32 masters of what trains, ZeRO {config.zero_stage}",
            "captions of 256 tokens at most; eager attention without the score matrix (flash or equivalent)",
            "allocator slack, workspaces and communication buffers come on top: leave 10 to 20 %",
        ),
        **parts,
    )


def _state_bytes(
    config: TrainConfig, plan: FreezePlan, processes: int, accumulation: int, value: int
) -> dict[str, float]:
    """Return GB of weights, gradients and optimiser state per process, as the ZeRO stages share them."""
    stage, trainable, frozen = config.zero_stage, plan.trainable_count, plan.frozen_count
    share = {
        name: processes if stage >= least else 1 for name, least in (("opt", 1), ("grad", 2), ("weight", 3))
    }
    per_gradient = value + (4 if value == 2 and accumulation > 1 and stage > 0 else 0)
    separate_masters = value == 2 or stage > 0
    per_state = (4 if separate_masters else 0) + 8 + (4 if config.ema_decay else 0)
    optimizer = trainable * per_state / share["opt"] / 1e9
    return {
        "weights_gb": (trainable + frozen) * value / share["weight"] / 1e9,
        "gradients_gb": trainable * per_gradient / share["grad"] / 1e9,
        "optimizer_gb": optimizer,
        "host_gb": optimizer if config.offload_optimizer else 0.0,
    }


def _meta_model(config: TrainConfig) -> tuple[Any, int]:
    """Return the model without memory, and the width of its tokens."""
    import torch
    from l2p_arch import ArchError, L2PTransformer

    path = config.model / "transformer" / "config.json"
    if not path.is_file():
        raise TrainError(f"{config.model} is no L2P model directory: no transformer/config.json")
    settings = json.loads(path.read_text(encoding="utf-8"))
    try:
        with torch.device("meta"):
            model = L2PTransformer.from_config(settings)
        return model, model.source_family.feature_channels(settings["trunk_config"])
    except (ArchError, KeyError) as error:
        raise TrainError(f"{path}: {error}") from error


def _image_size(config: TrainConfig) -> tuple[int, int]:
    if config.resolution:
        return config.resolution, config.resolution
    if not any(config.corpus.glob("*.parquet")):
        raise TrainError(f"no corpus in {config.corpus} to take the image size from; set resolution")
    import pyarrow.parquet as pq

    reader = pq.ParquetFile(min(config.corpus.glob("*.parquet")))
    row = reader.read_row_group(0, columns=["height", "width"]).slice(0, 1).to_pylist()[0]
    return row["height"], row["width"]


def _trunk_values(config: TrainConfig, model: Any, plan: FreezePlan, tokens: int, channels: int) -> float:
    """Return the values that the blocks save for the backward pass of one image."""
    trained = {row.module for row in plan.rows if row.trainable}
    blocks = model.block_names()
    if config.gradient_checkpointing:
        per_token = (
            len(blocks) * CHECKPOINTED_BLOCK_VALUES + TRAINABLE_BLOCK_VALUES
        )  # and one block recomputed
    else:
        per_token = sum(TRAINABLE_BLOCK_VALUES if name in trained else FROZEN_BLOCK_VALUES for name in blocks)
    return float(tokens * channels * per_token)


def _head_values(model: Any, height: int, width: int, channels: int) -> float:
    """Return the values that the Detailer Head saves: in and out of convolutions, SiLUs, pools."""
    total, area = 0.0, float(height * width)
    widths = [3, *model.config.head_channels]
    for level in range(1, len(widths)):  # input, conv and SiLU outputs, int64 pool indices
        total += area * (widths[level - 1] + 2 * widths[level]) + area / 4 * 4 * widths[level]
        area /= 4
    total += area * (widths[-1] + channels + 2 * widths[-1])
    for level in range(len(widths) - 1, 0, -1):  # decoder: upsampled, conv output, concatenation, conv, SiLU
        area *= 4
        out = widths[max(level - 1, 1)]
        total += area * (widths[level] + widths[level] + 2 * widths[level] + 2 * out)
    return total

"""What a run needs before it starts: parameters, tokens, memory per GPU, from the meta device (`--dry-run`).

Counted: weights, gradients, float32 masters, Adam moments, EMA, saved activations, DeepSpeed's buckets as
they are on a GPU. Not counted: the allocator's slack and workspaces, for which `SLACK` of a card stays free.
Activations follow measurements of eager bf16 on Z-Image (6.155 B, 4352 tokens): a trainable block saves 45, a
frozen one 30 values per token and channel; the Detailer Head is counted from its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from l2p_run.errors import raised_as
from l2p_run.places import read_json

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.freeze import FreezePlan, plan_for_model
from l2p_train.lora import add_adapters
from l2p_train.student import prepare_student
from l2p_train.zero.quantised import check_quantises
from l2p_train.zero.settings import LIVE_PARAMETERS, bucket_bytes

TRAINABLE_BLOCK_VALUES = 45  # saved values per token and channel
FROZEN_BLOCK_VALUES = 30
CHECKPOINTED_BLOCK_VALUES = 1  # its input
TILE_MARGIN = 3  # cells of the head's coarsest grid around a tile
CARDS_GB = (24, 32, 48, 80, 141)
SLACK = 0.1  # of a card


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
    optimizer_gb: float  # masters, Adam moments, EMA; on the host with offload
    buckets_gb: float  # gradients on their way to be reduced; with ZeRO-3 also weights gathered for use
    host_gb: float  # host memory that offload takes: masters, moments, EMA, float32 gradients
    activations_gb: float
    checkpoint_gb: float  # one checkpoint on disk
    assumptions: tuple[str, ...]

    @property
    def total_gb(self) -> float:
        """GPU memory per process."""
        optimizer = 0.0 if self.host_gb else self.optimizer_gb
        return self.weights_gb + self.gradients_gb + optimizer + self.buckets_gb + self.activations_gb

    @property
    def card_gb(self) -> int | None:
        """The smallest usual card that holds `total_gb` and the slack, None if none does."""
        return next((card for card in CARDS_GB if self.total_gb <= (1 - SLACK) * card), None)

    def text(self) -> str:
        """Return the estimate as a table with its assumptions."""
        lines = [
            self.plan.table(),
            "",
            f"tokens per image       {self.tokens} ({self.image_tokens} of the image)",
            f"images per forward     {self.images_per_forward} per process, {self.processes} "
            f"process{'' if self.processes == 1 else 'es'}",
            "GB per process:",
            f"  weights              {self.weights_gb:9.3f}",
            f"  gradients            {self.gradients_gb:9.3f}",
            f"  masters, Adam, EMA   {0.0 if self.host_gb else self.optimizer_gb:9.3f}"
            + (f"  ({self.host_gb:.1f} GB on the host)" if self.host_gb else ""),
            f"  buckets              {self.buckets_gb:9.3f}",
            f"  saved activations    {self.activations_gb:9.3f}",
            f"  total                {self.total_gb:9.3f}",
            f"smallest card          {f'{self.card_gb} GB' if self.card_gb else 'none: see below'}",
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
    micro, _ = config.batch_layout(processes)
    model, channels = meta_model(config)
    config.check_recipe(aligned=model.aligner is not None, polishes=bool(model.polish))
    plan = plan_for_model(
        model,
        trainable=config.trainable,
        train_patterns=config.train_patterns,
        freeze_patterns=config.freeze_patterns,
    )
    height, width = (height, width) if height and width else _image_size(config)
    image_tokens = (height // model.patch_size) * (width // model.patch_size)
    tokens = image_tokens + model.source_family.caption_tokens(config.max_sequence_length, 256)
    activations = micro * (
        _trunk_values(config, model, plan, tokens, channels)
        + head_values(config, model, height, width, channels)
    )
    return Estimate(
        plan=plan,
        processes=processes,
        image_tokens=image_tokens,
        tokens=tokens,
        images_per_forward=micro,
        activations_gb=activations * _bytes(config) / 1e9,
        checkpoint_gb=plan.trainable_count * (16 if config.ema_decay else 12) / 1e9,
        assumptions=_assumptions(config, tokens - image_tokens, _quantised_count(model, plan) > 0),
        **_state_bytes(config, model, plan, processes),
    )


def _bytes(config: TrainConfig) -> int:
    return 2 if config.precision == "bf16" else 4


def _assumptions(config: TrainConfig, caption_tokens: int, frozen_blocks: bool) -> tuple[str, ...]:
    frozen = ", frozen blocks in 8 bit" if config.frozen_weights == "int8" else ""
    lines = [
        f"{config.precision} weights{frozen}, float32 masters of what trains, ZeRO {config.zero_stage}",
        f"captions of {caption_tokens} tokens",
        "attention without the score matrix (flash or equivalent)",
        f"{SLACK:.0%} of a card stay free for workspaces and the allocator's slack",
    ]
    savers = {
        "gradient_checkpointing = true": not config.gradient_checkpointing,
        "a smaller micro_batch_size": config.micro_batch_size != 1,
        "head_tile = 1024": config.head_tile == 0,
        "zero_stage = 3 with offload_optimizer = true": not (config.offload_optimizer or config.adapts),
        "zero_stage = 2 with offload_optimizer = true": not config.offload_optimizer and config.adapts,
        'frozen_weights = "int8"': config.frozen_weights != "int8" and frozen_blocks,
    }
    left = [name for name, possible in savers.items() if possible]
    return (*lines, "less memory: " + "; ".join(left)) if left else tuple(lines)


def _state_bytes(config: TrainConfig, model: Any, plan: FreezePlan, processes: int) -> dict[str, float]:
    """Return GB of weights, gradients, optimiser state and buckets per process, as ZeRO shares them."""
    value, stage, trainable = _bytes(config), config.zero_stage, plan.trainable_count
    share = {
        name: processes if stage >= least else 1 for name, least in (("opt", 1), ("grad", 2), ("weight", 3))
    }
    quantised = 0
    if config.frozen_weights == "int8":
        check_quantises(model, plan)
        quantised = _quantised_count(model, plan)
    shared = trainable + plan.frozen_count - quantised  # 8-bit weights are no parameters: ZeRO has no part
    # ZeRO sums in float32 whether or not there is anything to accumulate; stage 1 keeps those in bf16, too.
    per_gradient = {0: value, 1: 6 if value == 2 else 4}.get(stage, 4)
    gradients = float(trainable * per_gradient / share["grad"])
    separate_masters = value == 2 or stage > 0
    per_state = (4 if separate_masters else 0) + 8 + (4 if config.ema_decay else 0)
    optimizer = trainable * per_state / share["opt"]
    host = 0.0
    if config.offload_optimizer:
        host = optimizer + trainable * 8 / share["opt"]
        if stage == 3 or (stage == 2 and value == 4):
            gradients = (
                0.0  # each bucket goes to the host when it is full; ZeRO 2 waits for its sum in float32
            )
    sizes = dict(model.named_parameters())
    teacher = trainable * value if config.distils else 0  # the rest it shares with its student
    buckets = float(bucket_bytes(config, trainable, max(sizes[name].numel() for name in plan.trainable)))
    if stage == 3:
        buckets += value * min(LIVE_PARAMETERS, shared)
    return {
        "weights_gb": (shared * value / share["weight"] + quantised + teacher) / 1e9,
        "gradients_gb": gradients / 1e9,
        "optimizer_gb": optimizer / 1e9,
        "buckets_gb": buckets / 1e9,
        "host_gb": host / 1e9,
    }


def _quantised_count(model: Any, plan: FreezePlan) -> int:
    """Return how many weights `quantise_frozen` would hold in 8 bit."""
    from torch import nn

    trains = {row.module for row in plan.rows if row.trainable}
    linear = (
        module
        for name in model.block_names()
        if name not in trains
        for module in model.get_submodule(name).modules()
        if isinstance(module, nn.Linear)
    )
    return sum(module.weight.numel() for module in linear)


def meta_model(config: TrainConfig) -> tuple[Any, int]:
    """Return the model without memory, and the width of its tokens."""
    import torch
    from l2p_arch import ArchError, L2PTransformer

    path = config.model / "transformer" / "config.json"
    if not path.is_file():
        raise TrainError(f"{config.model} is no L2P model directory: no transformer/config.json")
    settings = raised_as(TrainError)(read_json)(path)
    if not isinstance(settings, dict):
        raise TrainError(f"{path} holds no table of settings; write the model again")
    try:
        with torch.device("meta"):
            model = L2PTransformer.from_config(settings)
            if config.adapts:
                add_adapters(model, config)
            prepare_student(model, config)
        return model, model.source_family.feature_channels(settings["trunk_config"])
    except (ArchError, KeyError) as error:
        raise TrainError(f"{path}: {error}") from error


def _image_size(config: TrainConfig) -> tuple[int, int]:
    if config.resolution:
        return config.resolution, config.resolution
    from l2p_train.data.shards import first_size

    try:
        return first_size(config.corpus)
    except TrainError as error:
        raise TrainError(f"{error}; to do without a corpus, set resolution") from error


def _trunk_values(config: TrainConfig, model: Any, plan: FreezePlan, tokens: int, channels: int) -> float:
    """Return the values that the blocks save for the backward pass of one image."""
    trained = {row.module for row in plan.rows if row.trainable}
    blocks = model.block_names()
    if model.aligner is not None and not any(
        name.startswith(("trunk.", "guidance_embedder.")) for name in plan.trainable
    ):
        return 0.0  # an aligned trunk that is frozen whole has no backward pass
    if config.gradient_checkpointing:
        per_token = (
            len(blocks) * CHECKPOINTED_BLOCK_VALUES + TRAINABLE_BLOCK_VALUES
        )  # and one block recomputed
    else:
        per_token = sum(TRAINABLE_BLOCK_VALUES if name in trained else FROZEN_BLOCK_VALUES for name in blocks)
    return float(tokens * channels * per_token)


def head_values(config: TrainConfig, model: Any, height: int, width: int, channels: int) -> float:
    """Return the values that the head saves for one image; in checkpointed tiles its ends and one tile.

    Args:
        config: says precision, tiles and checkpointing.
        model: says the head.
        height, width: of the image, px.
        channels: width of the tokens.
    """
    if not model.config.head_channels:  # the plain linear head keeps the features it reads
        return float(height * width * channels / model.patch_size**2)
    factor, floor = model.enlargement, model.config.head_decoder_floor
    finer, coarser = model.head_widths
    bottleneck = model.config.head_bottleneck
    total = _tiled_values(
        config, model.head_inputs, coarser, channels, height, width, factor, floor, bottleneck
    )
    if finer:
        total += _tiled_values(
            config, model.head_inputs, finer, max(coarser[0], floor), height, width, 1, floor, None
        )
    return total


def _tiled_values(
    config: TrainConfig,
    read: int,
    widths: Sequence[int],
    features: int,
    height: int,
    width: int,
    factor: int,
    floor: int,
    bottleneck: int | None,
) -> float:
    """Return what one Detailer Head saves, whole or in tiles.

    Args:
        config: says precision, tiles and checkpointing.
        read: channels that it reads at full size.
        widths: of its encoder.
        features: width of what it fuses.
        height, width: of the image, px.
        factor: how much smaller than the image is what the head sees, along a side.
        floor, bottleneck: see `DetailerHead`.
    """
    height, width, tile = height // factor, width // factor, config.head_tile // factor
    head = read, widths, features, floor, bottleneck
    if not (tile and config.gradient_checkpointing and max(height, width) > tile):
        return _whole_head_values(config, *head, height, width)
    side = tile + 2 * TILE_MARGIN * 2 ** len(widths)
    ends = height * width * (read + 3 + features / 4 ** len(widths))
    return ends + _whole_head_values(config, *head, min(side, height), min(side, width))


def _whole_head_values(
    config: TrainConfig,
    read: int,
    widths: Sequence[int],
    features: int,
    floor: int,
    bottleneck: int | None,
    height: int,
    width: int,
) -> float:
    """Return what the Detailer Head saves: what convolutions, SiLUs and pools read, and the pools' indices.

    Joining and upsampling save nothing of what they read.
    """
    encoder = [read, *widths]
    decoder = [max(wide, floor) for wide in encoder[1:]]
    total, area = 0.0, float(height * width)
    for wide_in, wide_out in pairwise(encoder):
        total += area * (wide_in + 2 * wide_out)
        area /= 4
        total += area * wide_out * 8 / _bytes(config)  # the indices are int64
    wide = bottleneck or encoder[-1]
    total += area * (encoder[-1] + features + wide)
    for level in range(len(decoder), 0, -1):
        area *= 4
        out = decoder[max(level - 2, 0)]
        total += area * (wide + decoder[level - 1] + encoder[level] + out)
        wide = out
    return total + area * wide

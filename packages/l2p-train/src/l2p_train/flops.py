"""FLOPs of a training step, counted on the meta device; what throughput and utilisation are measured against.

Model FLOPs: multiply-adds times two of matrix products, convolutions and attention, forward and backward, as
the frozen layers need them (a trainable layer costs three times its forward, a frozen one twice), without
what activation checkpointing computes again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from l2p_run.sizes import Size

from l2p_train.config import TrainConfig
from l2p_train.data.conditioning import Conditioning
from l2p_train.freeze import FreezePlan

logger = logging.getLogger(__name__)

# Dense bf16 TFLOP/s with float32 accumulation, from NVIDIA's data sheets; the first name found counts.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.2,
    "L4": 121.0,
}


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one image."""

    forward: float
    step: float  # forward and backward


def training_flops(config: TrainConfig, plan: FreezePlan, size: Size, conditioning: Conditioning) -> Flops:
    """Count one image's forward and backward pass; no memory is used for it.

    Args:
        config: names the model directory; only its config.json is read.
        plan: what trains.
        size: of the image, px.
        conditioning: one sample's, for its shapes.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from l2p_train.memory import meta_model

    model, _ = meta_model(config)
    trainable = set(plan.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    pixels = torch.empty((1, 3, *size.shape), device="meta")
    on_meta = {name: tensor.to("meta") for name, tensor in conditioning.items()}
    on_meta = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in on_meta.items()
    }
    with FlopCounterMode(display=False) as counter:
        velocity = model(pixels, torch.empty(1, device="meta"), [on_meta])
        forward = float(counter.get_total_flops())
        velocity.sum().backward()
    return Flops(forward=forward, step=float(counter.get_total_flops()))


def flops_or_none(
    config: TrainConfig, plan: FreezePlan, size: Size, conditioning: Conditioning
) -> Flops | None:
    """Return `training_flops`, or None, with a line in the log, for a model that cannot run on meta."""
    try:
        return training_flops(config, plan, size, conditioning)
    except (NotImplementedError, RuntimeError) as error:
        logger.warning("no FLOP count: %s", str(error).splitlines()[0])
        return None


def peak_tflops(config: TrainConfig) -> float | None:
    """Return the device's peak TFLOP/s: the config's, or that of a known GPU in bf16, else None."""
    if config.peak_tflops is not None:
        return config.peak_tflops
    if not torch.cuda.is_available() or config.precision != "bf16":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)

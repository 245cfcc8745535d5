"""Frozen weights in 8 bit: half of bf16's memory for what never trains (the one-GPU recipe).

Weight only: one scale per output channel, activations stay in bf16. Only the copy in the trainer's memory is
rounded: the exported model takes its frozen tensors from the first model's files. A buffer and not a tensor
subclass, so that DeepSpeed, which takes parameters apart and casts them, leaves it alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2p_train.errors import TrainError
from l2p_train.freeze import FreezePlan

LEVELS = 127  # symmetric: -127 to 127


class Int8Linear(nn.Module):
    """`nn.Linear` with a frozen weight, held as int8 and a scale per output channel.

    The weight enters the products as whole numbers, which bf16 holds exactly, and the scale multiplies the
    result; so no full-precision copy of the weight outlives a call, in the backward pass either.
    """

    integers: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        # Rounded to bf16, so that the engine's cast of floating buffers changes nothing.
        scale = (weight.abs().amax(1).clamp(min=1e-12) / LEVELS).bfloat16().float()
        integers = (weight / scale[:, None]).round_().clamp_(-LEVELS, LEVELS)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("integers", integers.to(torch.int8))
        self.register_buffer("scale", scale.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        y: Tensor = _IntegerProduct.apply(x, self.integers, self.scale)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Name the shape."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class _IntegerProduct(torch.autograd.Function):
    """x (integers * scale)^T, whose backward pass keeps the integers and not their bf16 form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, integers: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(integers, scale)
        return F.linear(x, integers.to(x.dtype)) * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        integers, scale = ctx.saved_tensors
        return (gradient * scale.to(gradient.dtype)) @ integers.to(gradient.dtype), None, None


def quantise_frozen(model: Any, plan: FreezePlan) -> int:
    """Replace the linear layers of wholly frozen blocks, one at a time; return how many weights they had.

    Raises:
        TrainError: no block is wholly frozen.
    """
    check_quantises(model, plan)
    trains = {row.module for row in plan.rows if row.trainable}
    count = 0
    for name in model.block_names():
        if name in trains:
            continue
        for parent in list(model.get_submodule(name).modules()):
            for child_name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    with _whole(child):
                        setattr(parent, child_name, Int8Linear(child))
                    count += child.in_features * child.out_features
    return count


def check_quantises(model: Any, plan: FreezePlan) -> None:
    """Raise `TrainError` where 8 bit would hold nothing: every block trains, or has an adapter."""
    if {row.module for row in plan.rows if row.trainable} >= set(model.block_names()):
        raise TrainError(
            'frozen_weights = "int8" holds blocks in 8 bit that are wholly frozen, and here every block '
            'trains or has an adapter; set it to "as-is", train fewer blocks, or adapt some only '
            '(lora_targets = ["trunk.layers.0.*"])'
        )


def _whole(linear: nn.Linear) -> AbstractContextManager[Any]:
    """Gather a weight that ZeRO-3 holds in shares."""
    if not hasattr(linear.weight, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([linear.weight])

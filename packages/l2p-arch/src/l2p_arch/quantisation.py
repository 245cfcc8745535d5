"""Weights in 8 bits: the linear layers of the main blocks, one scale per output, everything else in bfloat16.

Head, embedders, refiners, norms and modulation stay as they are: they are a small share, and rounding them
shows first. Nothing is faster by it on a CPU, which multiplies in the dtype of its input; the file and the
memory are smaller.
"""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2p_arch.errors import ArchError

QUANTISATIONS = ("int8", "fp8")
_LARGEST = {"int8": 127.0, "fp8": 448.0}  # of a stored value; fp8 is E4M3
_KEPT = re.compile(r"norm|adaln|modulation|\bmod\b|time|embed", re.IGNORECASE)


class WeightOnlyLinear(nn.Linear):
    """A linear layer that stores its weight in 8 bits and multiplies in the dtype of its input."""

    scale: nn.Parameter

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = layer.in_features, layer.out_features, kind
        device, shape = layer.weight.device, layer.weight.shape
        # fp8 lies as bytes, too: what is floating is cast to the model's dtype by whoever loads it.
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.int8, device=device), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(shape[0], device=device), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        weight = self.weight if self.kind == "int8" else self.weight.view(torch.float8_e4m3fn)
        out = F.linear(x, weight.to(x.dtype)) * self.scale.to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)


def check_quantisation(kind: str) -> None:
    """Raise for an unknown kind."""
    if kind not in QUANTISATIONS:
        raise ArchError(f"quantisation {kind!r} is not one of {', '.join(QUANTISATIONS)}")


def quantised_names(model: Any) -> list[str]:
    """Return the linear layers of a model's main blocks that are stored in 8 bits."""
    names = []
    for block in model.block_names():
        for name, module in model.get_submodule(block).named_modules():
            if isinstance(module, nn.Linear) and not _KEPT.search(name):
                names.append(f"{block}.{name}")
    return names


def use_quantised_layers(model: Any, kind: str) -> None:
    """Put layers of 8 bits, without values yet, where `quantised_names` says."""
    check_quantisation(kind)
    for name in quantised_names(model):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, WeightOnlyLinear(model.get_submodule(name), kind))


def quantised(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return (8 bits (out, in), scale (out,) in bfloat16) of a weight (out, in); the scale is exact in
    bfloat16.
    """
    weight = weight.float()
    scale = (weight.abs().amax(dim=1) / _LARGEST[kind]).bfloat16()
    # Rounded down it would leave no room for the largest value.
    step = torch.where(scale.float() * _LARGEST[kind] < weight.abs().amax(dim=1), 1.0 + 2**-7, 1.0)
    scale = (scale.float() * step).bfloat16()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    values = (weight / scale.float()[:, None]).clamp(-_LARGEST[kind], _LARGEST[kind])
    if kind == "int8":
        return values.round().to(torch.int8), scale
    return values.to(torch.float8_e4m3fn).view(torch.int8), scale

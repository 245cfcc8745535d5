"""First values of the new ends: the pixel embedder and the Detailer Head."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from l2p_arch.model import L2PTransformer
    from l2p_arch.surgery import Source

NewTensors = dict[str, Tensor]


def new_tensors(
    initialisation: str,
    model: L2PTransformer,
    source: Source,
    calibration_images: Tensor | None,
    *,
    seed: int,
) -> NewTensors:
    """Values of all new tensors by their names in `model` (which may lie on the meta device)."""
    made = _default(model, seed)
    INITIALISATIONS[initialisation](made, model, source, calibration_images)
    return made


def _default(model: L2PTransformer, seed: int) -> NewTensors:
    """PyTorch's own initialisation, as the public conversion has it."""
    made = {}
    embedder = f"trunk.{model.source_family.embedder}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for prefix in (embedder, "detailer_head"):
            module = model.get_submodule(prefix).to_empty(device="cpu")
            for layer in module.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.reset_parameters()
            made.update(
                {
                    f"{prefix}.{name}": value
                    for name, value in module.state_dict().items()
                }
            )
    return made


def _keep(
    made: NewTensors,
    model: L2PTransformer,
    source: Source,
    calibration_images: Tensor | None,
) -> None:
    """Leave PyTorch's values as they are."""


def _zero_output(
    made: NewTensors,
    model: L2PTransformer,
    source: Source,
    calibration_images: Tensor | None,
) -> None:
    """Start from a velocity of exactly zero: no random field to unlearn."""
    for name in ("detailer_head.out_conv.weight", "detailer_head.out_conv.bias"):
        made[name] = torch.zeros_like(made[name])


INITIALISATIONS: dict[
    str, Callable[[NewTensors, L2PTransformer, Source, Tensor | None], None]
] = {
    "default": _keep,
    "zero-output": _zero_output,
}

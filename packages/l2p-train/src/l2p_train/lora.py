"""Low-rank adapters on the trunk (`trainable = "lora"`): added by PEFT, saved as diffusers' file, merged.

A linear layer W of a main block becomes W + (alpha / rank) B A, where A and B train and W does not. The
exported model has the adapters merged into its weights, so that it samples like any other; the adapters
alone lie beside it, for the trunk that they were trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.freeze import is_adapter
from l2p_train.tensors import save_tensors

FOLDER = "lora"
"""Of the exported model: `lora/pytorch_lora_weights.safetensors`."""
_NAME = "default"


def add_adapters(model: Any, config: TrainConfig) -> None:
    """Put adapters onto the linear layers of the main blocks that `lora_targets` names, in place.

    Raises:
        TrainError: PEFT is not installed, or no linear layer is named so.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise TrainError('trainable = "lora" needs PEFT; pip install "l2p-arch[lora]"') from error
    linear = [
        f"{block}.{name}"
        for block in model.block_names()
        for name, module in model.get_submodule(block).named_modules()
        if isinstance(module, nn.Linear)
    ]
    targets = [name for name in linear if name.endswith(tuple(f".{end}" for end in config.lora_targets))]
    if not targets:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise TrainError(
            f"lora_targets {', '.join(config.lora_targets)} name no linear layer of the blocks; there are "
            f"{', '.join(ends)}"
        )
    model.add_adapter(
        LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets), _NAME
    )


def merge_into(
    tensors: dict[str, Tensor],
    names: Collection[str],
    read: Callable[[str], Tensor],
    settings: Mapping[str, Any],
) -> set[str]:
    """Add adapters to the weights that they stand beside, in place; return the names of those used.

    Args:
        tensors: of one file, by name.
        names: of all trained tensors, adapters among them.
        read: name -> trained tensor.
        settings: the run's config, as its checkpoint keeps it.
    """
    used: set[str] = set()
    for name in tensors:
        module = name.removesuffix(".weight")
        down, up = (f"{module}.lora_{side}.{_NAME}.weight" for side in "AB")
        if down not in names:
            continue
        change = read(up).float() @ read(down).float()
        scale = settings["lora_alpha"] / settings["lora_rank"]
        tensors[name] = (tensors[name].float() + scale * change).to(tensors[name].dtype)
        used |= {down, up}
    return used


def save_adapters(
    names: Collection[str], read: Callable[[str], Tensor], settings: Mapping[str, Any], model: Path
) -> None:
    """Write the adapters of a run beside its model as diffusers' pipelines load them; alpha / rank is part of
    B."""
    scale = settings["lora_alpha"] / settings["lora_rank"]
    state = {}
    for name in names:
        if is_adapter(name):
            factor = scale if ".lora_B." in name else 1.0
            key = f"transformer.{name.replace(f'.{_NAME}.', '.')}"
            state[key] = (read(name).float() * factor).to(torch.float32).contiguous()
    if state:
        (model / FOLDER).mkdir(exist_ok=True)
        save_tensors(state, model / FOLDER / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})

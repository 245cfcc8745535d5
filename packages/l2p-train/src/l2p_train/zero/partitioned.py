"""Loading under ZeRO-3: no process ever holds the whole model, on the device or in host memory.

The model is built with parameters that have no memory; then module by module gets its weights and hands them
to ZeRO, which keeps this process's share. (Building it inside `with deepspeed.zero.Init()` would be shorter,
but that casts every float tensor made meanwhile, the float64 tables of rotary positions among them.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2p_train.errors import TrainError
from l2p_train.machine.tensors import open_tensors


def load_partitioned(
    transformer: Path, dtype: torch.dtype, settings: Mapping[str, Any], device: torch.device | str
) -> Any:
    """Return the `L2PTransformer` of a directory with its parameters partitioned; collective.

    Args:
        transformer: directory with config.json and safetensors files.
        dtype: of the parameters.
        settings: DeepSpeed's, with stage 3.
        device: of this process; ZeRO takes the parameters there, we the buffers.

    Raises:
        TrainError: the files lack a tensor, or have one of another shape.
    """
    import deepspeed
    from accelerate import init_empty_weights
    from l2p_arch import L2PTransformer

    config = json.loads((transformer / "config.json").read_text(encoding="utf-8"))
    with init_empty_weights(include_buffers=False):
        model = L2PTransformer.from_config(config)
    # Processes of one machine read the same files through the page cache; only headers are kept.
    handles = [open_tensors(path) for path in sorted(transformer.glob("*.safetensors"))]
    where = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118

    def read(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        found = tuple(where[name].get_slice(name).get_shape()) if name in where else None
        if found != shape:
            raise TrainError(
                f"cannot load a model from {transformer.parent}: {name} is {found or 'missing'}, "
                f"wanted {shape}"
            )
        tensor: torch.Tensor = where[name].get_tensor(name)
        return tensor

    modules = list(model.named_modules())
    for prefix, module in reversed(modules):  # children before parents: each call shares out one module's own
        own = list(module.named_parameters(recurse=False))
        for name, empty in own:
            full = f"{prefix}.{name}" if prefix else name
            value = read(full, tuple(empty.shape)).to(dtype)
            setattr(module, name, nn.Parameter(value, requires_grad=empty.requires_grad))
        if own:
            deepspeed.zero.Init(module=module, config_dict_or_path=dict(settings), dtype=dtype)
    for name, buffer in model.named_buffers():
        if name in where:
            buffer.copy_(read(name, tuple(buffer.shape)))
    move_buffers(model, device)
    return model


def move_buffers(model: nn.Module, device: torch.device | str) -> None:
    """Move every buffer: position tables and the like.

    DeepSpeed leaves a model that is partitioned where it is, and `model.to` would reach for the parameters.
    """
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))

"""Loading under ZeRO-3: no process ever holds the whole model, on the device or in host memory.

Every module is built inside `deepspeed.zero.Init`, which shares its parameters out as soon as they exist;
then process 0 reads the files tensor by tensor and hands each one round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from l2p_train.errors import TrainError


def load_partitioned(transformer: Path, dtype: torch.dtype, settings: Mapping[str, Any]) -> Any:
    """Return the `L2PTransformer` of a directory with its parameters partitioned; collective.

    Args:
        transformer: directory with config.json and safetensors files.
        dtype: of the parameters.
        settings: DeepSpeed's, with stage 3.

    Raises:
        TrainError: the files lack a tensor, or have one of another shape.
    """
    import deepspeed
    from l2p_arch import L2PTransformer
    from safetensors import safe_open

    config = json.loads((transformer / "config.json").read_text(encoding="utf-8"))
    with deepspeed.zero.Init(config_dict_or_path=dict(settings), dtype=dtype):
        model = L2PTransformer.from_config(config)
    # Processes on one machine read the same files through the page cache; only headers are kept.
    handles = [safe_open(path, framework="pt") for path in sorted(transformer.glob("*.safetensors"))]
    where = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        shape = tuple(where[name].get_slice(name).get_shape()) if name in where else None
        if shape != tuple(parameter.ds_shape):
            raise TrainError(
                f"cannot load a model from {transformer.parent}: {name} is {shape or 'missing'}, wanted "
                f"{tuple(parameter.ds_shape)}"
            )
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if torch.distributed.get_rank() == 0:
                parameter.copy_(where[name].get_tensor(name))
    for name, buffer in model.named_buffers():
        if name in where:
            buffer.copy_(where[name].get_tensor(name))
    return model

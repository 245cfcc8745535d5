"""Low-rank adapters (`trainable = "lora"` and `"lora-only"`): added by PEFT, saved alone, merged.

A layer W becomes W + (alpha / rank) B A, where A and B train and W does not. The exported model has the
adapters merged into its weights, so that it samples like any other; the adapters alone lie beside it. With
"lora-only" they are all that was learned, and fit the model that the run started from; with "lora" the new
ends have trained, too, and the adapters belong to the exported model's head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.freeze import is_adapter
from l2p_train.machine.tensors import save_tensors

FOLDER = "lora"
"""Of the exported model: `lora/pytorch_lora_weights.safetensors`."""
COMFYUI = "lora-comfyui/adapter.safetensors"
"""Of the exported model. A folder of its own, because a folder with one file is an adapter to diffusers."""
_NAME = "default"


def add_adapters(model: Any, config: TrainConfig) -> None:
    """Put adapters onto the layers that `lora_targets` names, in place.

    Raises:
        TrainError: PEFT is not installed, no layer is named so, or one that trains as a whole is.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise TrainError(
            f'trainable = "{config.trainable}" needs PEFT; pip install "l2p-arch[lora]"'
        ) from error
    targets = adapted_layers(model, config.lora_targets)
    whole = [name for name in targets if any(name.startswith(f"{end}.") for end in model.new_names())]
    if whole and config.trainable == "lora":
        raise TrainError(
            f'lora_targets name {whole[0]}, which trains as a whole with trainable = "lora"; set trainable = '
            '"lora-only", or leave it out'
        )
    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # PEFT draws A: a run begins as the same run began elsewhere
        model.add_adapter(settings, _NAME)


def adapted_layers(model: Any, targets: Sequence[str]) -> list[str]:
    """Return the layers that get an adapter, in the model's order.

    Args:
        model: an `L2PTransformer`.
        targets: each the end of names of linear layers in the main blocks ("to_q", "attention.to_out.0"), or,
            with a star or the name of a half of the model before it, a pattern over all linear and
            convolution layers ("trunk.layers.2.*", "detailer_head.*").

    Raises:
        TrainError: one of them names none.
    """
    every = [name for name, one in model.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    in_blocks = tuple(f"{block}." for block in model.block_names())
    linear = [
        name
        for name in every
        if name.startswith(in_blocks) and isinstance(model.get_submodule(name), nn.Linear)
    ]
    chosen: set[str] = set()
    for target in targets:
        if "*" in target or target.startswith(("trunk.", "detailer_head.")):
            found = [name for name in every if fnmatchcase(name, target)]
        else:
            found = [name for name in linear if name.endswith(f".{target}")]
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise TrainError(
                f"lora_targets {target} name no linear layer of the blocks; there are {', '.join(ends)}, and "
                "patterns such as trunk.layers.0.* or detailer_head.*"
            )
        chosen |= set(found)
    return [name for name in every if name in chosen]


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
        first, second = read(down).float(), read(up).float()
        # A convolution's first factor has its window, the second none: together they are one convolution.
        change = (second.flatten(1) @ first.flatten(1)).view(tensors[name].shape)
        scale = settings["lora_alpha"] / settings["lora_rank"]
        tensors[name] = (tensors[name].float() + scale * change).to(tensors[name].dtype)
        used |= {down, up}
    return used


def save_adapters(
    names: Collection[str], read: Callable[[str], Tensor], settings: Mapping[str, Any], model: Path
) -> None:
    """Write the adapters of a run beside its model, in the two layouts that are read elsewhere; alpha / rank
    is part of B.

    `FOLDER` is diffusers' (`transformer.`), `COMFYUI` has the names of ai-toolkit and ComfyUI: those of the
    source's own modules behind `diffusion_model.`.
    """
    scale = settings["lora_alpha"] / settings["lora_rank"]
    own = {
        name.replace(f".{_NAME}.", "."): (read(name).float() * (scale if ".lora_B." in name else 1.0))
        .to(torch.float32)
        .contiguous()
        for name in names
        if is_adapter(name)
    }
    if not own:
        return
    (model / FOLDER).mkdir(exist_ok=True)
    layouts = {
        model / FOLDER / "pytorch_lora_weights.safetensors": {f"transformer.{n}": v for n, v in own.items()},
        model / COMFYUI: {f"diffusion_model.{n.removeprefix('trunk.')}": v for n, v in own.items()},
    }
    for path, state in layouts.items():
        path.parent.mkdir(exist_ok=True)
        save_tensors(state, path, metadata={"format": "pt"})

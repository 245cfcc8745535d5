"""Model directories with weights in 8 bits."""

from pathlib import Path
from typing import Any

from l2p_arch.arguments import check_flags, check_paths
from l2p_arch.errors import ArchError
from l2p_arch.files.components import (
    components_to_keep,
    copy_components,
    copy_file,
    name_of,
    read_model_config,
)
from l2p_arch.files.directories import appearing_complete
from l2p_arch.files.model_card import write_model_card
from l2p_arch.files.tensor_files import FLOATS, StoredTensor, index_directory
from l2p_arch.files.tensor_writing import PlannedTensor, write_directory
from l2p_arch.quantisation import check_quantisation, quantised, quantised_names
from l2p_arch.source_formats import source_format

_BESIDE = ("sampling.json",)


def quantise(
    model: Path | str, out: Path | str, *, kind: str = "int8", overwrite: bool = False
) -> dict[str, int]:
    """Write a model directory whose blocks' linear layers are in 8 bits and all else in bfloat16.

    `L2PPipeline.from_pretrained` loads it like any other. It is for sampling: it neither trains nor exports.

    Args:
        model: L2P model directory.
        out: directory to create; it appears complete or not at all.
        kind: "int8" or "fp8" (E4M3), one scale per output of a layer.
        overwrite: replace an existing `out`.

    Returns:
        Bytes of the transformer's weights, "before" and "after".
    """
    import torch

    from l2p_arch.model import L2PTransformer

    check_paths(model=model, out=out)
    check_flags(overwrite=overwrite)
    model, out = Path(model), Path(out)
    check_quantisation(kind)
    config = read_model_config(model)
    if config.get("quantisation"):
        raise ArchError(f"{model} is quantised already ({config['quantisation']}); start from its original")
    stored = index_directory(model / "transformer")
    own = {key: value for key, value in config.items() if key != "quantisation" and key[0] != "_"}
    with torch.device("meta"):
        layers = set(quantised_names(L2PTransformer(**own)))
        made = L2PTransformer(**own, quantisation=kind)
    plan: list[PlannedTensor] = []
    for name, tensor in stored.items():
        plan += _planned(name, tensor, kind, layers)
    components = components_to_keep(model, source_format(config["family"]).text_components, config["family"])
    with appearing_complete(out, [model], overwrite) as partial:
        (partial / "transformer").mkdir()
        write_directory(partial / "transformer", plan)
        made.save_config(partial / "transformer")
        copy_components(model, components, partial)
        for name in _BESIDE:
            if (model / name).is_file():
                copy_file(model / name, partial / name)
        origin = f"{name_of(model)}, the blocks' linear layers in {kind}"
        write_model_card(partial, origin, title=name_of(out))
    before = sum(tensor.stop - tensor.start for tensor in stored.values())
    return {"before": before, "after": sum(tensor.size for tensor in plan)}


def _planned(name: str, tensor: StoredTensor, kind: str, layers: set[str]) -> list[PlannedTensor]:
    layer = name.removesuffix(".weight")
    if layer == name or layer not in layers:
        dtype = "BF16" if tensor.dtype in FLOATS else tensor.dtype
        return [PlannedTensor(name=name, dtype=dtype, shape=tensor.shape, origin=tensor)]

    def part(number: int) -> Any:
        return lambda: quantised(tensor.read(), kind)[number]

    return [
        PlannedTensor(name=name, dtype="I8", shape=tensor.shape, origin=part(0)),
        PlannedTensor(name=f"{layer}.scale", dtype="BF16", shape=tensor.shape[:1], origin=part(1)),
    ]

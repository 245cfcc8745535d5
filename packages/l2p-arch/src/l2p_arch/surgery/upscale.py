"""From a lower-resolution pixel-space model to a larger patch (sec. 3.4), for example 16 -> 64 -> 128.

The token grid stays, so the whole trunk is inherited. The pixel embedder of the larger patch is made from the
old one: it reads the mean of each block of pixels where the old one read a pixel, and so gives the same token
for the same picture. The Detailer Head keeps its coarse levels, counted from the bottleneck; its finest
levels are new.

A model of the aligned recipe is kept whole, head included, and sees the means of blocks; what is finer is
left to a second head, which begins by adding nothing (`l2p_arch.enlargement`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from l2p_arch.arguments import (
    check_counts,
    check_flags,
    check_names,
    check_patch_size,
    check_paths,
    check_seed,
    check_widths,
)
from l2p_arch.errors import ArchError
from l2p_arch.families import find_family
from l2p_arch.files.components import (
    components_to_keep,
    copy_components,
    name_of,
    read_model_config,
    recipe_of,
)
from l2p_arch.files.directories import appearing_complete, write_json
from l2p_arch.files.model_card import write_model_card
from l2p_arch.files.tensor_files import StoredTensor, index_directory
from l2p_arch.files.tensor_writing import PlannedTensor, write_directory
from l2p_arch.surgery.head_widths import check_head_channels, complete_head
from l2p_arch.surgery.recipes import enlarged_config, resolve_start
from l2p_arch.surgery.report import SurgeryReport, TensorRecord
from l2p_arch.surgery.starts import (
    AUTO,
    SOURCELESS,
    check_initialisation,
    pytorch_values,
    resolve_initialisation,
)


def upscale(
    model: Path | str,
    out: Path | str,
    *,
    patch_size: int = 64,
    head_channels: Sequence[int] | None = None,
    head_bottleneck: int | None = None,
    head_decoder_floor: int = 0,
    initialisation: str = AUTO,
    seed: int = 0,
    overwrite: bool = False,
    max_shard_bytes: int = 5 << 30,
) -> SurgeryReport:
    """Write an L2P model directory for a larger patch, started from one for a smaller patch.

    Args:
        model: L2P model directory, such as `convert` and training write.
        out: directory to create; it appears complete or not at all.
        patch_size: a multiple of the model's own.
        head_channels: encoder widths, finest first; None is the public 4K, 8K and 10K heads' for patch 64,
            128 and 160, and as many levels as the patch has halvings for others. Those of an aligned model
            end in the model's own, which stay, and None halves its finest width for each finer level.
        head_bottleneck: width after the fusion; None keeps the model's.
        head_decoder_floor: least width of a decoder level (16 in the public 8K and 10K heads).
        initialisation: of the head's new levels: "auto" (the start that measurements chose), "default"
            (PyTorch's), "zero-output", "kaiming", "detail" or several joined with "+". The other starts of
            `convert` look at a source with its VAE. Of an aligned model "auto" adds nothing at first.
        seed: of the tensors that are new.
        overwrite: replace an existing `out`.
        max_shard_bytes: largest weight file.

    Returns:
        The report, also written as surgery_report.json.
    """
    check_paths(model=model, out=out)
    check_patch_size(patch_size)
    check_counts(max_shard_bytes=max_shard_bytes)
    check_seed(seed)
    check_flags(overwrite=overwrite)
    check_names(initialisation=initialisation)
    model, out = Path(model), Path(out)
    old, factor = _smaller(model, patch_size)
    family = find_family(old["family"])
    components = components_to_keep(model, family.text_components, family.name)
    stored = index_directory(model / "transformer")
    if recipe_of(old) == "aligned":
        if head_channels is not None:
            check_widths("head_channels", head_channels)
        given = head_channels, head_bottleneck, head_decoder_floor
        config = enlarged_config(old, patch_size, factor, *given)
        initialisation = resolve_start(initialisation)
    else:
        head_channels, head_bottleneck, head_decoder_floor = complete_head(
            patch_size, head_channels, head_bottleneck, head_decoder_floor
        )
        check_head_channels(patch_size, head_channels)
        initialisation = resolve_initialisation(initialisation, head_channels)
        _check_start(initialisation, head_channels)
        config = {
            "family": family.name,
            "trunk_config": old["trunk_config"],
            "patch_size": patch_size,
            "head_channels": list(head_channels),
            "head_bottleneck": _bottleneck(old, head_channels, head_bottleneck),
            "head_decoder_floor": head_decoder_floor,
            "prediction": old.get("prediction", "velocity"),
        }
    larger, made = _started(config, initialisation, seed)
    wanted = {name: tuple(value.shape) for name, value in larger.state_dict().items()}
    plan, used = _plan(stored, wanted, made, old, family.embedder, len(config["head_channels"]), factor)
    head = [tensor for tensor in plan if tensor.name.startswith(("detailer_head.", "fine_head."))]
    has_new_levels = any(not isinstance(tensor.origin, StoredTensor) for tensor in head)
    start = f"upscale+{initialisation}" if has_new_levels and initialisation != "default" else "upscale"
    report = replace(
        _report(name_of(model), family.name, patch_size, start, plan, stored, used), recipe=recipe_of(old)
    )
    with appearing_complete(out, [model], overwrite) as partial:
        (partial / "transformer").mkdir()
        write_directory(partial / "transformer", plan, max_shard_bytes=max_shard_bytes)
        larger.save_config(partial / "transformer")
        copy_components(model, components, partial)
        write_json(partial / "surgery_report.json", asdict(report))
        origin = f"{report.source}, patch {old['patch_size']}, with a larger patch (surgery_report.json)"
        write_model_card(partial, origin, title=name_of(out))
    return report


def _smaller(model: Path, patch_size: int) -> tuple[dict[str, Any], int]:
    """Return the config of the model to start from, and by how much the patch grows along a side."""
    old = read_model_config(model)
    if old.get("quantisation"):
        raise ArchError(f"{model} is quantised ({old['quantisation']}); start from the model it was made of")
    if old.get("guidance_range"):
        raise ArchError(
            f"{model} is a student that takes its guidance as a number; enlarge the model that it was "
            "distilled from, and distil that"
        )
    factor, rest = divmod(patch_size, old["patch_size"])
    if rest or factor < 2:
        raise ArchError(
            f"patch size {patch_size} is no larger multiple of the model's own {old['patch_size']}"
        )
    if (old.get("alignment") or {}).get("enlargement", 1) > 1:
        raise ArchError(f"{model} has been enlarged already; start from the model that it was made of")
    return old, factor


def _bottleneck(old: Mapping[str, Any], head_channels: Sequence[int], asked: int | None) -> int | None:
    """Return the width after the fusion as a config has it: None where it is the last encoder level's."""
    if not head_channels:
        return asked
    before = old.get("head_bottleneck") or (old["head_channels"] or head_channels)[-1]
    width = asked or before
    return None if width == head_channels[-1] else int(width)


def _started(config: Mapping[str, Any], initialisation: str, seed: int) -> tuple[Any, dict[str, Tensor]]:
    """Return the larger model on the meta device, and first values of its embedder and its whole head."""
    from l2p_arch.model import L2PTransformer

    with torch.device("meta"):
        larger = L2PTransformer(**config)
    made = pytorch_values(larger, seed)
    if larger.fine_head is not None:  # the starts know a head by one name
        own = {name: value for name, value in made.items() if name.startswith("fine_head.")}
        made = {name.replace("fine_head.", "detailer_head.", 1): value for name, value in own.items()}
    for name, apply in SOURCELESS.items():
        if name in initialisation.split("+"):
            apply(made, larger, None, None)
    return larger, made if larger.fine_head is None else own


def _check_start(initialisation: str, head_channels: Sequence[int]) -> None:
    unknown = [name for name in initialisation.split("+") if name not in ("default", *SOURCELESS)]
    if unknown:
        raise ArchError(
            f"initialisation {unknown[0]!r} is none of upscale's: {AUTO}, default, {', '.join(SOURCELESS)}, "
            "joined with '+'"
        )
    check_initialisation(initialisation, None, head_channels)


def _plan(
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    made: Mapping[str, Tensor],
    old: Mapping[str, Any],
    embedder: str,
    levels: int,
    factor: int,
) -> tuple[list[PlannedTensor], set[str]]:
    """Return where every wanted tensor comes from, and which stored ones are used."""
    plan, used = [], set()
    weight = f"trunk.{embedder}.weight"
    new_dtype, aligned = stored[weight].dtype, recipe_of(old) == "aligned"
    for name, shape in wanted.items():
        origin = stored.get(name if aligned else _older_name(name, levels - len(old["head_channels"])))
        if name == weight and not aligned:
            used.add(name)
            enlarged = _enlarged(stored[weight], shape, old["patch_size"], factor)
            plan.append(PlannedTensor(name=name, dtype=new_dtype, shape=shape, origin=enlarged))
        elif origin is not None and origin.shape == shape:
            used.add(origin.name)
            plan.append(PlannedTensor(name=name, dtype=origin.dtype, shape=shape, origin=origin))
        elif name in made:
            plan.append(PlannedTensor(name=name, dtype=new_dtype, shape=shape, origin=_constant(made[name])))
        else:
            raise ArchError(f"the model lacks {name} {shape}; is its directory complete?")
    return plan, used


def _older_name(name: str, extra_levels: int) -> str:
    """Return the name in the smaller head of a tensor of the larger one: levels are aligned at the
    bottleneck.
    """
    match = re.fullmatch(r"(detailer_head\.(?:enc|up|dec))(\d+)(\..*)", name)
    if name.startswith("detailer_head.out_conv.") and extra_levels:
        return ""  # it reads a new level
    if not match:
        return name
    return f"{match[1]}{int(match[2]) - extra_levels}{match[3]}"


def _enlarged(stored: StoredTensor, shape: tuple[int, ...], patch_size: int, factor: int) -> Any:
    """Return the embedder that reads block means where the old one read pixels."""

    def make() -> Tensor:
        weight = stored.read().float().reshape(stored.shape[0], 3, patch_size, patch_size) / factor**2
        return repeat(weight, "d c y x -> d (c y fy x fx)", fy=factor, fx=factor).reshape(shape)

    return make


def _constant(value: Tensor) -> Any:
    return lambda: value


def _report(
    source: str,
    family: str,
    patch_size: int,
    start: str,
    plan: Sequence[PlannedTensor],
    stored: Mapping[str, StoredTensor],
    used: set[str],
) -> SurgeryReport:
    def records(tensors: Any) -> tuple[TensorRecord, ...]:
        return tuple(TensorRecord(name=t.name, shape=t.shape, dtype=t.dtype) for t in tensors)

    return SurgeryReport(
        source=source,
        family=family,
        patch_size=patch_size,
        initialisation=start,
        inherited=records(tensor for tensor in plan if isinstance(tensor.origin, StoredTensor)),
        new=records(tensor for tensor in plan if not isinstance(tensor.origin, StoredTensor)),
        dropped=records(tensor for name, tensor in stored.items() if name not in used),
    )

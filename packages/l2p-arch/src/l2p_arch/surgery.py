"""Weight surgery (sec. 3.3): a source checkpoint becomes the initialisation of a pixel-space model.

The blocks are inherited byte for byte and streamed from file to file; the latent ends are dropped by name;
the pixel embedder and the Detailer Head are new. The VAE stays behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p_arch.directories import (
    appearing_complete,
    components_to_keep,
    copy_components,
    read_json,
    write_json,
)
from l2p_arch.errors import ArchError
from l2p_arch.families import Family, find_family_of_class
from l2p_arch.initialisation import check_initialisation, new_tensors
from l2p_arch.model_card import write_model_card
from l2p_arch.tensor_files import PlannedTensor, StoredTensor, index_directory, write_directory


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """One line of the report."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class SurgeryReport:
    """What became of every tensor. Inherited and new tensors carry their new names, dropped ones their old
    names."""

    source: str
    family: str
    patch_size: int
    initialisation: str
    inherited: tuple[TensorRecord, ...]
    new: tuple[TensorRecord, ...]
    dropped: tuple[TensorRecord, ...]
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the initialisation measured on the source, for example how much of the latents its fit
    explains."""

    def summary(self) -> str:
        """One line for a terminal."""
        parts = []
        for label in ("inherited", "new", "dropped"):
            records: tuple[TensorRecord, ...] = getattr(self, label)
            count = sum(torch.Size(record.shape).numel() for record in records)
            parts.append(f"{label} {len(records)} tensors ({count / 1e6:.2f} M parameters)")
        return f"{self.family}, patch {self.patch_size}: " + ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A diffusers pipeline directory that has been looked at but not loaded."""

    directory: Path
    family: Family
    pipeline_index: Mapping[str, Any]
    transformer_config: Mapping[str, Any]
    components: Sequence[str]
    """Text encoders, tokenizers and the scheduler: what a converted model takes along."""
    tensors: Mapping[str, StoredTensor]


def convert(
    source: Path | str,
    out: Path | str,
    *,
    patch_size: int = 16,
    head_channels: Sequence[int] = (64, 128, 256, 512),
    head_bottleneck: int | None = None,
    head_decoder_floor: int = 0,
    seed: int = 0,
    dtype: str | None = None,
    initialisation: str = "default",
    calibration_images: Tensor | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5 << 30,
) -> SurgeryReport:
    """Turn a latent diffusion pipeline into a pixel-space one, and write it to `out`.

    Args:
        source: a diffusers text-to-image directory (model_index.json, transformer/, text encoder, ...).
        out: directory to create; it appears complete or not at all.
        patch_size: px per token side; 16 keeps the token grid of an f8 VAE with 2x2 latent patches.
        head_channels: encoder widths of the Detailer Head, finest first; empty for a plain linear head.
        head_bottleneck, head_decoder_floor: see `DetailerHead`; the public 8K and 10K heads need them.
        seed: of the new tensors.
        dtype: "float32", "bfloat16" or "float16" for all tensors; None keeps the source's dtypes.
        initialisation: keys of `INITIALISATIONS`, joined with "+".
        calibration_images: (N, 3, H, W) in [-1, 1], for the initialisations that measure the source.
        overwrite: replace an existing `out`.
        max_shard_bytes: largest weight file.

    Returns:
        The report, also written as surgery_report.json.

    Raises:
        ArchError: the source is no such directory, of an unknown family, or has tensors that nothing accounts
        for.
    """
    from l2p_arch.model import L2PTransformer

    check_initialisation(initialisation, calibration_images, head_channels)
    opened = open_source(Path(source))
    wanted_dtype = _dtype_name(dtype)
    config = {
        "family": opened.family.name,
        "trunk_config": {
            key: value for key, value in opened.transformer_config.items() if not key.startswith("_")
        },
        "patch_size": patch_size,
        "head_channels": list(head_channels),
        "head_bottleneck": head_bottleneck,
        "head_decoder_floor": head_decoder_floor,
    }
    with torch.device("meta"):
        model = L2PTransformer(**config)
    plan, report = _plan(opened, model, wanted_dtype, patch_size, initialisation)
    with appearing_complete(Path(out), opened.directory, overwrite) as partial:
        made, measures = new_tensors(initialisation, model, opened, calibration_images, seed=seed)
        plan = [tensor if isinstance(tensor.origin, StoredTensor) else _made(tensor, made) for tensor in plan]
        report = replace(report, measures=measures)
        (partial / "transformer").mkdir()
        write_directory(partial / "transformer", plan, max_shard_bytes=max_shard_bytes)
        model.save_config(partial / "transformer")
        copy_components(opened.directory, opened.components, partial)
        write_json(partial / "surgery_report.json", asdict(report))
        origin = f"{report.source}, by weight surgery; new ends: {initialisation} (surgery_report.json)"
        write_model_card(partial, origin, title=Path(out).name)
    return report


def open_source(source: Path) -> Source:
    """Look at a pipeline directory without loading anything; ArchError says what is wrong with it."""
    if not source.is_dir():
        raise ArchError(f"{source} is not a directory; give a diffusers text-to-image directory")
    index = read_json(source / "model_index.json", f"{source} is no diffusers pipeline directory")
    if str((index.get("transformer") or [None])[0]).startswith("l2p_arch"):
        raise ArchError(f"{source} is already a pixel-space model; surgery starts from a latent one")
    config = read_json(source / "transformer" / "config.json", f"{source} has no transformer to start from")
    family = find_family_of_class(config.get("_class_name", ""))
    return Source(
        directory=source,
        family=family,
        pipeline_index=index,
        transformer_config=config,
        components=components_to_keep(source, family.text_components, family.name),
        tensors=index_directory(source / "transformer"),
    )


def _plan(
    source: Source, model: Any, dtype: str | None, patch_size: int, initialisation: str
) -> tuple[list[PlannedTensor], SurgeryReport]:
    """Say for every wanted tensor where it comes from, and for every source tensor what becomes of it."""
    family = source.family
    inherited, new, dropped, plan = [], [], [], []
    latent = {name: stored for name, stored in source.tensors.items() if family.is_source_end(name)}
    unclaimed = source.tensors.keys() - latent.keys()
    if not latent:
        raise ArchError(
            f"{source.directory}: the transformer has no latent ends ({', '.join(family.source_ends)})"
        )
    new_dtype = dtype or next(iter(latent.values())).dtype
    for name, value in model.state_dict().items():
        shape = tuple(value.shape)
        source_name = name.removeprefix("trunk.")
        if name.startswith(("detailer_head.", f"trunk.{family.embedder}.")):
            plan.append(PlannedTensor(name=name, dtype=new_dtype, shape=shape, origin=_not_made))
            new.append(TensorRecord(name=name, shape=shape, dtype=new_dtype))
            continue
        stored = source.tensors.get(source_name)
        if stored is None:
            raise ArchError(f"{source.directory}: the transformer lacks {source_name} {shape}")
        if stored.shape != shape:
            raise ArchError(
                f"{source.directory}: {source_name} has the shape {stored.shape}, its config says {shape}"
            )
        unclaimed.discard(source_name)
        plan.append(PlannedTensor(name=name, dtype=dtype or stored.dtype, shape=shape, origin=stored))
        inherited.append(TensorRecord(name=name, shape=shape, dtype=dtype or stored.dtype))
    if unclaimed:
        some = ", ".join(sorted(unclaimed)[:3])
        raise ArchError(
            f"{source.directory}: {len(unclaimed)} tensors have no place in a {family.name} model: {some}"
        )
    for name, stored in latent.items():
        dropped.append(TensorRecord(name=name, shape=stored.shape, dtype=stored.dtype))
    report = SurgeryReport(
        source=source.directory.name,
        family=family.name,
        patch_size=patch_size,
        initialisation=initialisation,
        inherited=tuple(inherited),
        new=tuple(new),
        dropped=tuple(dropped),
    )
    return plan, report


def _not_made() -> Tensor:
    raise AssertionError("a new tensor was planned but not made")


def _made(planned: PlannedTensor, made: Mapping[str, Tensor]) -> PlannedTensor:
    value = made[planned.name]
    return PlannedTensor(name=planned.name, dtype=planned.dtype, shape=planned.shape, origin=lambda: value)


def _dtype_name(dtype: str | None) -> str | None:
    if dtype is None:
        return None
    name = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}.get(dtype)
    if name is None:
        raise ArchError(f"dtype {dtype!r} is not one of float32, bfloat16, float16")
    return name

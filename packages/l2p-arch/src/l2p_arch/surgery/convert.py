"""Weight surgery (sec. 3.3): a source checkpoint becomes the initialisation of a pixel-space model.

The blocks are inherited byte for byte and streamed from file to file; the latent ends are dropped by name;
the pixel embedder and the Detailer Head are new. The VAE stays behind. The copy begins before torch and
diffusers, which take seconds, are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_arch.arguments import (
    check_captions,
    check_counts,
    check_flags,
    check_names,
    check_patch_size,
    check_paths,
    check_pictures,
    check_seed,
)
from l2p_arch.errors import ArchError
from l2p_arch.files.components import copy_components, name_of
from l2p_arch.files.directories import appearing_complete, write_json
from l2p_arch.files.mapping import memory_maps
from l2p_arch.files.model_card import write_model_card
from l2p_arch.files.tensor_files import FLOATS, StoredTensor
from l2p_arch.files.tensor_writing import DirectoryWriter, PlannedTensor
from l2p_arch.surgery.aligned import aligned_tensors, inherited_tensors
from l2p_arch.surgery.head_widths import check_head_channels, complete_head
from l2p_arch.surgery.recipes import (
    RECIPES,
    check_alignable,
    check_prediction,
    recipe_config,
    resolve_decoder,
    resolve_start,
)
from l2p_arch.surgery.report import SurgeryReport, TensorRecord
from l2p_arch.surgery.source import Source, open_source
from l2p_arch.surgery.starts import AUTO, check_initialisation, new_tensors, resolve_initialisation

if TYPE_CHECKING:
    from torch import Tensor


def convert(
    source: Path | str,
    out: Path | str,
    *,
    patch_size: int = 16,
    head_channels: Sequence[int] | None = None,
    head_bottleneck: int | None = None,
    head_decoder_floor: int = 0,
    seed: int = 0,
    dtype: str | None = None,
    recipe: str = "paper",
    initialisation: str = AUTO,
    prediction: str = AUTO,
    decoder: str = AUTO,
    reading: str = AUTO,
    polish: float | Sequence[float] | str = AUTO,
    calibration_images: Tensor | None = None,
    calibration_prompts: Sequence[str] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5 << 30,
    disable_mmap: bool | None = None,
) -> SurgeryReport:
    """Turn a latent diffusion pipeline into a pixel-space one, and write it to `out`.

    Args:
        source: a diffusers text-to-image directory (model_index.json, transformer/, text encoder, ...).
        out: directory to create; it appears complete or not at all.
        patch_size: px per token side; 16 keeps the token grid of an f8 VAE with 2x2 latent patches.
        head_channels: encoder widths of the Detailer Head, finest first; empty for a plain linear head. None
            is Table 3's for patch 16, the public 4K, 8K and 10K heads' for 64, 128 and 160, and as many
            levels as the patch has halvings for others.
        head_bottleneck, head_decoder_floor: see `DetailerHead`; the public 8K and 10K heads need them.
        seed: of the new tensors.
        dtype: "float32", "bfloat16" or "float16" for all tensors; None keeps the source's dtypes (new tensors
            are bfloat16 where the source is in 8 bit).
        recipe: "paper" drops the source's latent ends and predicts the velocity (sec. 3.3); "aligned" keeps
            the whole transformer and predicts x_0 from what it answers (`l2p_arch.alignment`), which needs a
            VAE and calibration images.
        initialisation: "auto", the start that measurements chose for what is given, or keys of
            `INITIALISATIONS`, joined with "+", such as "default", PyTorch's own values as in the public code.
            The report says what "auto" stood for: without calibration images a closed form, and with them
            "fitted+kaiming+gated", which loads the source's transformer once.
        prediction: what the head answers: "velocity", or "x_0", the image; "auto" is what the recipe has, the
            velocity in the paper's and the image in the aligned one. An image head of the paper's recipe is
            for comparisons: the published layouts do not hold it.
        decoder: of the aligned recipe: "auto", the one that measurements chose, or a key of
            `l2p_arch.surgery.recipes.DECODERS`; those with filters load the source's transformer once.
        reading: of the aligned recipe, what the trunk reads of pixels: "auto", the one that measurements
            chose, or a key of `l2p_arch.surgery.recipes.READINGS`.
        polish: of the aligned recipe, the sigmas in [0, 1) at which `L2PPipeline` denoises a finished image
            once more, in their order; 0 for none; "auto" takes off grain alone (0.2, then 0.02).
        calibration_images: (N, 3, H, W) in [-1, 1], for the recipes and initialisations that measure the
            source.
        calibration_prompts: what the images show, one each, for the aligned recipe's filters.
        overwrite: replace an existing `out`.
        max_shard_bytes: largest weight file.
        disable_mmap: load what is measured (VAE, text encoder) by plain reads, for network and FUSE mounts;
            the blocks are copied by plain reads in any case. None: as L2P_DISABLE_MMAP says.

    Returns:
        The report, also written as surgery_report.json.

    Raises:
        ArchError: the source is no such directory, of an unknown family, or has tensors that nothing accounts
        for.
    """
    check_paths(source=source, out=out)
    check_patch_size(patch_size)
    check_counts(max_shard_bytes=max_shard_bytes)
    check_seed(seed)
    check_flags(overwrite=overwrite)
    check_names(
        recipe=recipe, initialisation=initialisation, prediction=prediction, decoder=decoder, reading=reading
    )
    if calibration_images is not None:
        check_pictures("calibration_images", calibration_images)
        check_captions(calibration_prompts, len(calibration_images))
    head_channels, head_bottleneck, head_decoder_floor = complete_head(
        patch_size, head_channels, head_bottleneck, head_decoder_floor
    )
    check_head_channels(patch_size, head_channels)
    if recipe not in RECIPES:
        raise ArchError(f"unknown recipe {recipe!r}; known: {', '.join(RECIPES)}")
    if recipe == "paper":
        for name, value in (("decoder", decoder), ("reading", reading), ("polish", polish)):
            if not isinstance(value, str) or value != AUTO:
                raise ArchError(f'{name} {value!r} belongs to recipe = "aligned"; leave it out')
        check_initialisation(initialisation, calibration_images, head_channels, prediction)
    check_prediction(recipe, prediction)
    opened = open_source(Path(source))
    wanted_dtype = _dtype_name(dtype)
    config = {
        "family": opened.format.family,
        "trunk_config": {
            key: value for key, value in opened.transformer_config.items() if not key.startswith("_")
        },
        "patch_size": patch_size,
        "head_channels": list(head_channels),
        "head_bottleneck": head_bottleneck,
        "head_decoder_floor": head_decoder_floor,
    }
    make: Callable[[Any], tuple[Mapping[str, Tensor], Mapping[str, float]]]
    if recipe == "aligned":
        check_alignable(opened, head_channels, calibration_images)
        assert calibration_images is not None
        initialisation, decoder = resolve_start(initialisation), resolve_decoder(decoder)
        config |= recipe_config(recipe, decoder, prediction, reading, polish)
        _refuse_quantised(opened)
        inherited = inherited_tensors(opened, wanted_dtype)
        make = partial(
            aligned_tensors,
            source=opened,
            decoder=decoder,
            start=initialisation,
            images=calibration_images,
            prompts=calibration_prompts,
            inherited=inherited,
            seed=seed,
        )
    else:
        config |= recipe_config(recipe, decoder, prediction)
        initialisation = resolve_initialisation(
            initialisation,
            head_channels,
            calibration_images,
            has_vae=opened.has_vae,
            prediction=prediction,
        )
        inherited = _inherited(opened, wanted_dtype)
        make = partial(
            new_tensors, initialisation, source=opened, calibration_images=calibration_images, seed=seed
        )
    with (
        memory_maps(disabled=disable_mmap),
        appearing_complete(Path(out), [opened.directory], overwrite) as staged,
    ):
        weights = staged / "transformer"
        weights.mkdir()
        with DirectoryWriter(weights, max_shard_bytes) as writer:
            # The disk copies the blocks while diffusers, which takes seconds to import, says whether they are
            # those that its class has, and while the new ends are made.
            writer.start(inherited)
            model = _meta_model(config)
            new = _check_against_model(opened, inherited, model, wanted_dtype)
            made, measures = make(model)
            writer.write([_made(tensor, made) for tensor in new])
        report = _report(opened, inherited, new, patch_size, recipe, initialisation, measures)
        model.save_config(weights)
        copy_components(opened.directory, opened.components, staged)
        write_json(staged / "surgery_report.json", asdict(report))
        origin = f"{report.source}, by weight surgery; new ends: {initialisation} (surgery_report.json)"
        write_model_card(staged, origin, title=name_of(Path(out)))
    return report


def _meta_model(config: Mapping[str, Any]) -> Any:
    import torch

    from l2p_arch.model import L2PTransformer

    with torch.device("meta"):
        return L2PTransformer(**config)


def _inherited(source: Source, dtype: str | None) -> list[PlannedTensor]:
    """Return all tensors of the source but its latent ends, told apart by name."""
    ends = source.format.ends
    _refuse_quantised(source)
    kept = [stored for name, stored in source.tensors.items() if not source.format.is_end(name)]
    if len(kept) == len(source.tensors):
        raise ArchError(f"{source.directory}: the transformer has no latent ends ({', '.join(ends)})")
    return [
        PlannedTensor(
            name=f"trunk.{stored.name}", dtype=dtype or stored.dtype, shape=stored.shape, origin=stored
        )
        for stored in kept
    ]


def _refuse_quantised(source: Source) -> None:
    quantised = next((stored for stored in source.tensors.values() if stored.dtype not in FLOATS), None)
    if quantised:
        raise ArchError(
            f"{source.directory}: {quantised.name} is stored as {quantised.dtype}, quantised; start from the "
            "weights that it was made of"
        )


def _check_against_model(
    source: Source, inherited: Sequence[PlannedTensor], model: Any, dtype: str | None
) -> list[TensorRecord]:
    """Hold what is inherited against the tensors that the model has, and return the rest: those to make."""
    family, new = source.family, []
    unclaimed = {tensor.name: tensor.shape for tensor in inherited}
    new_dtype = dtype or _latent_ends(source)[0].dtype
    if new_dtype.startswith("F8"):  # enough for weights that are there, but not to begin to train with
        new_dtype = "BF16"
    for name, value in model.state_dict().items():
        shape, source_name = tuple(value.shape), name.removeprefix("trunk.")
        if name.startswith("aligner."):  # float32 whatever the weights are: it divides by sigma
            new.append(TensorRecord(name=name, shape=shape, dtype="F32"))
            continue
        if name.startswith(tuple(f"{module}." for module in model.new_names())):
            new.append(TensorRecord(name=name, shape=shape, dtype=new_dtype))
            continue
        if name not in unclaimed:
            raise ArchError(f"{source.directory}: the transformer lacks {source_name} {shape}")
        if unclaimed[name] != shape:
            raise ArchError(
                f"{source.directory}: {source_name} has the shape {unclaimed[name]}, its config says {shape}"
            )
        del unclaimed[name]
    if unclaimed:
        some = ", ".join(sorted(name.removeprefix("trunk.") for name in unclaimed)[:3])
        raise ArchError(
            f"{source.directory}: {len(unclaimed)} tensors have no place in a {family.name} model: {some}"
        )
    return new


def _latent_ends(source: Source) -> list[StoredTensor]:
    return [stored for name, stored in source.tensors.items() if source.format.is_end(name)]


def _report(
    source: Source,
    inherited: Sequence[PlannedTensor],
    new: Sequence[TensorRecord],
    patch_size: int,
    recipe: str,
    initialisation: str,
    measures: Mapping[str, float],
) -> SurgeryReport:
    def records(tensors: Sequence[PlannedTensor | StoredTensor]) -> tuple[TensorRecord, ...]:
        return tuple(TensorRecord(name=each.name, shape=each.shape, dtype=each.dtype) for each in tensors)

    return SurgeryReport(
        source=name_of(source.directory),
        family=source.format.family,
        patch_size=patch_size,
        recipe=recipe,
        initialisation=initialisation,
        inherited=records(inherited),
        new=tuple(new),
        dropped=records(_latent_ends(source) if recipe == "paper" else ()),
        measures=measures,
    )


def _made(record: TensorRecord, made: Mapping[str, Tensor]) -> PlannedTensor:
    value = made[record.name]
    return PlannedTensor(name=record.name, dtype=record.dtype, shape=record.shape, origin=lambda: value)


def _dtype_name(dtype: str | None) -> str | None:
    if dtype is None:
        return None
    name = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}.get(dtype)
    if name is None:
        raise ArchError(f"dtype {dtype!r} is not one of float32, bfloat16, float16")
    return name

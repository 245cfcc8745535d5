"""Model directories to and from the single files in which L2P models of Z-Image are published."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_arch.arguments import check_counts, check_flags, check_paths
from l2p_arch.errors import ArchError
from l2p_arch.files.comfyui_layout import comfyui_names
from l2p_arch.files.components import (
    components_to_keep,
    copy_components,
    name_of,
    read_model_config,
    recipe_of,
)
from l2p_arch.files.directories import appearing_complete, appearing_file
from l2p_arch.files.model_card import single_file_card, write_model_card, write_text
from l2p_arch.files.public_layout import PublicLayout, layout_for, plan_export, read_published
from l2p_arch.files.recognition import identify, pipeline_family
from l2p_arch.files.tensor_files import index_directory
from l2p_arch.files.tensor_writing import PlannedTensor, write_directory, write_file
from l2p_arch.source_formats import source_format


def import_public(
    file: Path | str,
    pipeline: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = 5 << 30,
) -> str:
    """Turn a published single file into a model directory, bit by bit; return the layout's name.

    Args:
        file: the single file, recognised by its content, also in ComfyUI's layout (packed projections).
        pipeline: a Z-Image pipeline directory, whose text encoder, tokenizer and scheduler are taken along.
        out: directory to create; it appears complete or not at all.
        overwrite: replace an existing `out`.
        max_shard_bytes: largest weight file.
    """
    check_paths(file=file, pipeline=pipeline, out=out)
    check_flags(overwrite=overwrite)
    check_counts(max_shard_bytes=max_shard_bytes)
    file, pipeline, out = Path(file), Path(pipeline), Path(out)
    published = read_published(file)
    if pipeline_family(pipeline) != "z-image":
        raise ArchError(
            f"{pipeline} is {identify(pipeline)}; give a Z-Image directory, whose text encoder goes along"
        )
    model = _on_meta(published.config)
    plan = published.plan(model)
    components = components_to_keep(pipeline, source_format("z-image").text_components, "z-image")
    with appearing_complete(out, [pipeline, file], overwrite) as partial:
        (partial / "transformer").mkdir()
        write_directory(partial / "transformer", plan, max_shard_bytes=max_shard_bytes)
        model.save_config(partial / "transformer")
        copy_components(pipeline, components, partial)
        origin = f"{file.name}, imported bit by bit; text encoder and scheduler of {name_of(pipeline)}"
        write_model_card(partial, origin, title=name_of(out))
    return published.layout.name


def export_public(
    model: Path | str, file: Path | str, *, comfyui: bool = False, overwrite: bool = False
) -> str:
    """Write a model directory as one file in the public layout, bit by bit; return the layout's name.

    With `comfyui` by ComfyUI's names for a Z-Image: prefix, packed projections, `x_embedder`. Either is read
    by `import_public`, and neither by a ComfyUI that does not know L2P (docs/released.md).

    The model card goes beside it: `model.md` for `model.safetensors`. Where the trunk's config is not what
    `import_public` reads off the shapes, the file's metadata say so; published models have no such entry.
    """
    check_paths(model=model, file=file)
    check_flags(comfyui=comfyui, overwrite=overwrite)
    model, file = Path(model), Path(file)
    card_file = file.with_suffix(".md")
    if file == card_file:
        raise ArchError(f"{file} is the name of a model card; give the weights one with .safetensors")
    planned = plan_public(model)
    plan = comfyui_names(planned.tensors) if comfyui else planned.tensors
    names = "ComfyUI's names of the" if comfyui else "the public"
    origin = f"{name_of(model)}, exported in {names} {planned.layout.name} layout"
    with (
        appearing_file(card_file, [model], overwrite) as card,
        appearing_file(file, [model], overwrite) as weights,
    ):
        write_file(weights, plan, planned.metadata)
        stored = index_directory(model / "transformer")
        write_text(card, single_file_card(file, planned.config, stored, origin))
    return planned.layout.name


@dataclass(frozen=True, kw_only=True)
class PlannedExport:
    """A model directory by the public names; nothing of its weights is read yet."""

    tensors: list[PlannedTensor]
    config: Mapping[str, Any]
    layout: PublicLayout
    metadata: dict[str, str]
    """Of a file: what the tensors do not tell of the trunk."""


def plan_public(model: Path) -> PlannedExport:
    """Return the model by the names of its public layout.

    Raises:
        ArchError: no public layout holds such a model.
    """
    config = read_model_config(model)
    if config["family"] != "z-image":
        raise ArchError(f"{model} is of the family {config['family']!r}; only z-image has public layouts")
    if recipe_of(config) != "paper":
        raise ArchError(
            f"{model} is of the aligned recipe, and the public layouts hold the paper's alone; use its model "
            'directory, or train one with recipe = "paper"'
        )
    if config.get("prediction", "velocity") != "velocity":
        raise ArchError(
            f"the head of {model} answers the image, and the public layouts hold heads that answer the "
            'velocity; use its model directory, or convert with prediction = "velocity"'
        )
    if config.get("quantisation"):
        raise ArchError(
            f"{model} is quantised ({config['quantisation']}); export the model that it was made of"
        )
    if config.get("guidance_range"):
        raise ArchError(
            f"{model} takes its guidance as a number, for which the public layouts have no place; use its "
            "model directory, or distil a student of one scale (l2p-train distill without --guidance-range)"
        )
    layout = layout_for(config)
    tensors = index_directory(model / "transformer")
    plan, metadata = plan_export(model, config, tensors, layout, _on_meta(config))
    return PlannedExport(tensors=plan, config=config, layout=layout, metadata=metadata)


def _on_meta(config: Mapping[str, Any]) -> Any:
    import torch

    from l2p_arch.model import L2PTransformer

    with torch.device("meta"):
        return L2PTransformer(**{key: value for key, value in config.items() if not key.startswith("_")})

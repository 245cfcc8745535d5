"""The single-file layouts in which L2P models of the Z-Image family are published (1K, 4K, 8K, 10K)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einops import rearrange

from l2p_arch.errors import ArchError
from l2p_arch.files.comfyui_layout import comfyui_names, published_names
from l2p_arch.files.components import (
    components_to_keep,
    copy_components,
    name_of,
    read_model_config,
    recipe_of,
)
from l2p_arch.files.directories import appearing_complete, appearing_file
from l2p_arch.files.model_card import single_file_card, write_model_card, write_text
from l2p_arch.files.recognition import identify, pipeline_family, read_any_header
from l2p_arch.files.tensor_files import StoredTensor, index_directory
from l2p_arch.files.tensor_writing import PlannedTensor, write_directory, write_file
from l2p_arch.surgery.source_formats import source_format

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("enc", "up", "dec")
_UNTOLD = "l2p_trunk_config"


@dataclass(frozen=True, kw_only=True)
class PublicLayout:
    """Names of one published head."""

    name: str
    levels: tuple[str, ...]
    """What stands after enc, up and dec at each level, finest first."""
    keeps_pixel_channels: bool = False
    """The first encoder level has 3 channels, and the decoder is nowhere narrower than 16."""

    def head_name(self, ours: str) -> str:
        """Our name of a head's tensor, without `detailer_head.`, to the public one, with `local_decoder.`."""
        module, rest = ours.split(".", 1)
        for part in _PARTS:
            if module.startswith(part) and module[len(part) :].isdigit():
                module = part + self.levels[int(module[len(part) :]) - 1]
        return f"local_decoder.{module}.{rest}"


PUBLIC_LAYOUTS: dict[str, PublicLayout] = {
    "1k": PublicLayout(name="1k", levels=("1", "2", "3", "4")),
    "4k": PublicLayout(name="4k", levels=("0", "0b", "1", "2", "3", "4")),
    "8k": PublicLayout(name="8k", levels=("_8k", "0", "0b", "1", "2", "3", "4"), keeps_pixel_channels=True),
    "10k": PublicLayout(name="10k", levels=("_10k_a", "0", "0b", "1", "2", "3"), keeps_pixel_channels=True),
}


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
    file, pipeline, out = Path(file), Path(pipeline), Path(out)
    plan, config, layout = plan_import(file)
    if pipeline_family(pipeline) != "z-image":
        raise ArchError(
            f"{pipeline} is {identify(pipeline)}; give a Z-Image directory, whose text encoder goes along"
        )
    components = components_to_keep(pipeline, source_format("z-image").text_components, "z-image")
    with appearing_complete(out, [pipeline, file], overwrite) as partial:
        (partial / "transformer").mkdir()
        write_directory(partial / "transformer", plan, max_shard_bytes=max_shard_bytes)
        _meta_model(config).save_config(partial / "transformer")
        copy_components(pipeline, components, partial)
        origin = f"{file.name}, imported bit by bit; text encoder and scheduler of {name_of(pipeline)}"
        write_model_card(partial, origin, title=name_of(out))
    return layout.name


def plan_import(file: Path) -> tuple[list[PlannedTensor], dict[str, Any], PublicLayout]:
    """What a published single file holds, by our names, with the model's config; nothing is read yet."""
    if not file.is_file():
        raise ArchError(f"{file} is not a file; give a published L2P single file")
    stored_tensors, metadata = read_any_header(file)
    tensors = published_names(stored_tensors)
    layout = _layout_of(tensors)
    if layout is None:
        raise ArchError(f"{file} is no published L2P layout: it is {identify(file)}")
    config = _config_from(tensors, layout)
    config["trunk_config"] |= _read_untold(file, metadata)
    embedder = f"all_x_embedder.{config['patch_size']}-1"
    ours = {layout.head_name(name): f"detailer_head.{name}" for name in _head_names(config)}
    plan = []
    for name, stored in tensors.items():
        if name == f"{embedder}.weight":
            plan.append(
                _reordered(stored, "trunk.all_x_embedder.1-1.weight", _to_channel_first, config["patch_size"])
            )
            continue
        target = ours.get(name) or "trunk." + name.replace(f"{embedder}.", "all_x_embedder.1-1.")
        plan.append(PlannedTensor(name=target, dtype=stored.dtype, shape=stored.shape, origin=stored))
    _check_against_model(plan, config, file)
    return plan, config, layout


def export_public(
    model: Path | str, file: Path | str, *, comfyui: bool = False, overwrite: bool = False
) -> str:
    """Write a model directory as one file in the public layout, bit by bit; return the layout's name.

    With `comfyui` by ComfyUI's names for a Z-Image: prefix, packed projections, `x_embedder`. Either is read
    by `import_public`, and neither by a ComfyUI that does not know L2P (docs/released.md).

    The model card goes beside it: `model.md` for `model.safetensors`. Where the trunk's config is not what
    `import_public` reads off the shapes, the file's metadata say so; published models have no such entry.
    """
    model, file = Path(model), Path(file)
    config = read_model_config(model)
    if config["family"] != "z-image":
        raise ArchError(f"{model} is of the family {config['family']!r}; only z-image has public layouts")
    if recipe_of(config) != "paper":
        raise ArchError(
            f"{model} is of the aligned recipe, and the public layouts hold the paper's alone; use its model "
            'directory, or train one with recipe = "paper"'
        )
    if config.get("quantisation"):
        raise ArchError(
            f"{model} is quantised ({config['quantisation']}); export the model that it was made of"
        )
    layout = _layout_for(config)
    card_file = file.with_suffix(".md")
    if file == card_file:
        raise ArchError(f"{file} is the name of a model card; give the weights one with .safetensors")
    patch_size = config["patch_size"]
    plan = []
    tensors = index_directory(model / "transformer")
    _check_against_model(tensors.values(), config, model)
    for name, stored in tensors.items():
        if name == "trunk.all_x_embedder.1-1.weight":
            target = f"all_x_embedder.{patch_size}-1.weight"
            plan.append(_reordered(stored, target, _to_channel_last, patch_size))
            continue
        if name.startswith("detailer_head."):
            target = layout.head_name(name.removeprefix("detailer_head."))
        else:
            target = name.removeprefix("trunk.").replace(
                "all_x_embedder.1-1.", f"all_x_embedder.{patch_size}-1."
            )
        plan.append(PlannedTensor(name=target, dtype=stored.dtype, shape=stored.shape, origin=stored))
    metadata = _untold(config, plan, layout)
    if comfyui:
        plan = comfyui_names(plan)
    names = "ComfyUI's names of the" if comfyui else "the public"
    origin = f"{name_of(model)}, exported in {names} {layout.name} layout"
    with (
        appearing_file(card_file, [model], overwrite) as card,
        appearing_file(file, [model], overwrite) as weights,
    ):
        write_file(weights, plan, metadata)
        write_text(card, single_file_card(file, config, tensors, origin))
    return layout.name


def _to_channel_first(weight: Tensor, patch_size: int) -> Tensor:
    """Columns from the public order (py, px, c) to ours, pixel_unshuffle's (c, py, px)."""
    return rearrange(weight, "d (py px c) -> d (c py px)", py=patch_size, px=patch_size).contiguous()


def _to_channel_last(weight: Tensor, patch_size: int) -> Tensor:
    return rearrange(weight, "d (c py px) -> d (py px c)", py=patch_size, px=patch_size).contiguous()


def _reordered(stored: StoredTensor, name: str, order: Any, patch_size: int) -> PlannedTensor:
    return PlannedTensor(
        name=name, dtype=stored.dtype, shape=stored.shape, origin=lambda: order(stored.read(), patch_size)
    )


def _layout_of(tensors: Mapping[str, StoredTensor]) -> PublicLayout | None:
    present = {name.split(".")[1] for name in tensors if name.startswith("local_decoder.enc")}
    for layout in PUBLIC_LAYOUTS.values():
        if present == {f"enc{level}" for level in layout.levels}:
            return layout
    return None


def _layout_for(config: Mapping[str, Any]) -> PublicLayout:
    channels = config["head_channels"]
    if not channels:
        raise ArchError(
            "a plain linear head has no public layout; those hold Detailer Heads of 4, 6 or 7 levels"
        )
    for layout in PUBLIC_LAYOUTS.values():
        if len(layout.levels) == len(channels) and layout.keeps_pixel_channels == (channels[0] == 3):
            return layout
    raise ArchError(
        f"no public layout has a head of the widths {tuple(channels)}: 1K has 4 levels, 4K 6, 8K 7 and 10K 6 "
        "(in the last two the first has 3 channels), as the defaults of patch 16, 64, 128 and 160 have"
    )


def _config_from(tensors: Mapping[str, StoredTensor | PlannedTensor], layout: PublicLayout) -> dict[str, Any]:
    """Read the model's config off the shapes; what shapes do not tell is Z-Image's own."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        dim = shapes["x_pad_token"][1]
        head_dim = shapes["layers.0.attention.norm_q.weight"][0]
        embedder = next(
            name for name in shapes if name.startswith("all_x_embedder.") and name.endswith(".weight")
        )
        trunk = {
            "all_patch_size": [2],
            "all_f_patch_size": [1],
            "in_channels": 16,
            "dim": dim,
            "n_layers": _count(shapes, "layers"),
            "n_refiner_layers": _count(shapes, "noise_refiner"),
            "n_heads": dim // head_dim,
            "n_kv_heads": shapes["layers.0.attention.to_k.weight"][0] // head_dim,
            "cap_feat_dim": shapes["cap_embedder.0.weight"][0],
            "axes_dims": [head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3],
        }
        channels = [shapes[f"local_decoder.enc{level}.0.weight"][0] for level in layout.levels]
        bottleneck = shapes["local_decoder.bottleneck.0.weight"][0]
        finest = shapes["local_decoder.out_conv.weight"][1]
        patch_size = int(embedder.split(".")[1].split("-")[0])
    except (KeyError, StopIteration) as error:
        raise ArchError(f"the file lacks {error}, which every L2P model of Z-Image has") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise ArchError(f"the file's tensors are not shaped as an L2P model's of Z-Image: {error}") from error
    return {
        "family": "z-image",
        "trunk_config": trunk,
        "patch_size": patch_size,
        "head_channels": channels,
        "head_bottleneck": None if bottleneck == channels[-1] else bottleneck,
        "head_decoder_floor": finest if finest > channels[0] else 0,
    }


def _untold(config: Mapping[str, Any], plan: Sequence[PlannedTensor], layout: PublicLayout) -> dict[str, str]:
    """Metadata with those entries of a trunk's config that its tensors' shapes do not tell."""
    told = _config_from({tensor.name: tensor for tensor in plan}, layout)["trunk_config"]
    defaults = {**_trunk_defaults(), **told}
    own = {**_trunk_defaults(), **config["trunk_config"]}
    # The ends are gone, and what the class does not take, such as its version, says nothing of the trunk.
    known = _trunk_defaults().keys() - {"all_patch_size", "all_f_patch_size", "in_channels"}
    untold = {key: value for key, value in own.items() if key in known and defaults.get(key) != value}
    return {_UNTOLD: json.dumps(untold)} if untold else {}


def _read_untold(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        untold = json.loads(metadata.get(_UNTOLD, "{}"))
    except (ValueError, TypeError, RecursionError):
        untold = None
    if not isinstance(untold, dict) or not untold.keys() <= _trunk_defaults().keys():
        raise ArchError(f"{file}: its metadata {_UNTOLD} is no config of a Z-Image transformer")
    return untold


def _trunk_defaults() -> dict[str, Any]:
    """The config that diffusers' class has where nothing else is said."""
    import inspect

    from diffusers import ZImageTransformer2DModel

    parameters = inspect.signature(ZImageTransformer2DModel.__init__).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}


def _count(shapes: Mapping[str, Any], block_list: str) -> int:
    numbers = (int(name.split(".")[1]) for name in shapes if name.startswith(f"{block_list}."))
    return 1 + max(numbers, default=-1)


def _meta_model(config: Mapping[str, Any]) -> Any:
    import torch

    from l2p_arch.model import L2PTransformer

    with torch.device("meta"):
        return L2PTransformer(**{key: value for key, value in config.items() if not key.startswith("_")})


def _head_names(config: Mapping[str, Any]) -> list[str]:
    return list(_meta_model(config).detailer_head.state_dict())


def _check_against_model(
    tensors: Iterable[PlannedTensor | StoredTensor], config: Mapping[str, Any], path: Path
) -> None:
    """Raise unless these are the tensors of a model with that config, by our names."""
    wanted = {name: tuple(value.shape) for name, value in _meta_model(config).state_dict().items()}
    given = {tensor.name: tensor.shape for tensor in tensors}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ArchError(
                f"{path}: {name} is {given.get(name, 'missing')}, where the model has "
                f"{wanted.get(name, 'no such tensor')}"
            )

"""The single-file layouts in which L2P models of the Z-Image family are published (1K, 4K, 8K, 10K)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einops import rearrange

from l2p_arch.errors import ArchError
from l2p_arch.files.comfyui_layout import published_names
from l2p_arch.files.recognition import identify, read_any_header
from l2p_arch.files.tensor_files import StoredTensor
from l2p_arch.files.tensor_writing import PlannedTensor

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
        """Return our name of a head's tensor, without `detailer_head.`, to the public one, with
        `local_decoder.`.
        """
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


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A published single file, recognised by its content; its weights are not read."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    """By their public names."""
    config: Mapping[str, Any]
    """The arguments of the `L2PTransformer` that it holds."""
    layout: PublicLayout

    def plan(self, model: Any) -> list[PlannedTensor]:
        """Return its tensors by our names.

        Args:
            model: one of `config` on the meta device.

        Raises:
            ArchError: they are not that model's tensors.
        """
        patch_size = self.config["patch_size"]
        embedder = f"all_x_embedder.{patch_size}-1"
        heads = model.detailer_head.state_dict()
        ours = {self.layout.head_name(name): f"detailer_head.{name}" for name in heads}
        plan = []
        for name, stored in self.tensors.items():
            if name == f"{embedder}.weight":
                target = "trunk.all_x_embedder.1-1.weight"
                plan.append(_reordered(stored, target, _to_channel_first, patch_size))
                continue
            target = ours.get(name) or "trunk." + name.replace(f"{embedder}.", "all_x_embedder.1-1.")
            plan.append(PlannedTensor(name=target, dtype=stored.dtype, shape=stored.shape, origin=stored))
        _check_tensors(plan, model, self.path)
        return plan


def read_published(file: Path) -> PublishedFile:
    """Recognise a published single file; raises `ArchError` where it is none."""
    if not file.is_file():
        raise ArchError(f"{file} is not a file; give a published L2P single file")
    stored_tensors, metadata = read_any_header(file)
    tensors = published_names(stored_tensors)
    layout = _layout_of(tensors)
    if layout is None:
        raise ArchError(f"{file} is no published L2P layout: it is {identify(file)}")
    config = _config_from(tensors, layout)
    config["trunk_config"] |= _read_untold(file, metadata)
    return PublishedFile(path=file, tensors=tensors, config=config, layout=layout)


def plan_export(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    layout: PublicLayout,
    model: Any,
) -> tuple[list[PlannedTensor], dict[str, str]]:
    """Return the tensors of a model directory by their public names, and the file's metadata.

    Args:
        path: the directory, for errors.
        model: one of `config` on the meta device.
    """
    _check_tensors(tensors.values(), model, path)
    patch_size = config["patch_size"]
    plan = []
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
    return plan, _untold(config, plan, layout)


def _to_channel_first(weight: Tensor, patch_size: int) -> Tensor:
    """Return columns from the public order (py, px, c) to ours, pixel_unshuffle's (c, py, px)."""
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


def layout_for(config: Mapping[str, Any]) -> PublicLayout:
    """Return the layout that a model of that config is published in; raises `ArchError` where there is
    none.
    """
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
    """Return metadata with those entries of a trunk's config that its tensors' shapes do not tell."""
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
    """Return the config that diffusers' class has where nothing else is said."""
    import inspect

    from diffusers import ZImageTransformer2DModel

    parameters = inspect.signature(ZImageTransformer2DModel.__init__).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}


def _count(shapes: Mapping[str, Any], block_list: str) -> int:
    numbers = (int(name.split(".")[1]) for name in shapes if name.startswith(f"{block_list}."))
    return 1 + max(numbers, default=-1)


def _check_tensors(tensors: Iterable[PlannedTensor | StoredTensor], model: Any, path: Path) -> None:
    """Raise unless these are the tensors of that model, by our names."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {tensor.name: tensor.shape for tensor in tensors}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ArchError(
                f"{path}: {name} is {given.get(name, 'missing')}, where the model has "
                f"{wanted.get(name, 'no such tensor')}"
            )

"""Which module of a model each part of an adapter is for, and its factors as that module takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.loaders import lora_pipeline
from einops import rearrange
from torch import Tensor, nn

from l2p_arch.errors import ArchError
from l2p_arch.files.adapter_files import Factors, LoraFile, factors_of
from l2p_arch.files.public_layout import PUBLIC_LAYOUTS


class Modules:
    """Which module of a model an adapter's name means."""

    def __init__(self, model: Any) -> None:
        self._model, family = model, model.source_family
        self._known = {
            name.replace(".base_layer", "")
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name
        }
        self._flat = {name.removeprefix("trunk.").replace(".", "_"): name for name in self._known}
        self._flat |= {name.replace(".", "_"): name for name in self._known if not name.startswith("trunk.")}
        self._embedder = f"trunk.{family.embedder}"
        self._ends = tuple(end for end in family.source_format.ends)
        self._public = self._public_names()

    def _public_names(self) -> dict[str, str]:
        """Return the names of the published files for the head and the pixel embedder of a Z-Image model."""
        config = self._model.config
        if self._model.source_family.name != "z-image":
            return {}
        names = {f"all_x_embedder.{config['patch_size']}-1": self._embedder}
        levels = len(config["head_channels"])
        layouts = [each for each in PUBLIC_LAYOUTS.values() if len(each.levels) == levels]
        heads = [name for name in self._known if name.startswith("detailer_head.")]
        for layout in layouts:
            for name in heads:
                public = layout.head_name(f"{name.removeprefix('detailer_head.')}.weight")
                names.setdefault(public.removesuffix(".weight"), name)
        return names

    def find(self, name: str, width: int | None = None) -> str | None:
        """Return the module's own name, None where there is none.

        Args:
            width: of what the adapter reads; by its bare name the embedder may be the source's latent one.
        """
        if name in self._public:
            return self._public[name]
        own = next((own for own in (name, f"trunk.{name}") if own in self._known), self._flat.get(name))
        if own == self._embedder and width not in (None, self._model.get_submodule(own).weight.shape[1]):
            return None
        return own

    def is_latent_end(self, name: str) -> bool:
        """Return whether a name is of the source's ends, flattened or not."""
        flat = name.removeprefix("trunk.").replace(".", "_")
        return any(
            flat == end.replace(".", "_") or flat.startswith(f"{end.replace('.', '_')}_")
            for end in self._ends
        )

    def fits(self, module: str, name: str, factors: Factors) -> Factors:
        """Return the factors in the module's own order of columns, or an ArchError where they do not fit
        it.
        """
        layer = self._model.get_submodule(module)
        layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        a, b = factors.a, factors.b
        if isinstance(layer, nn.Linear):
            a, b = (each.flatten(1) if each.ndim == 4 else each for each in (a, b))
        fitting = a.shape[1] == layer.weight.shape[1] and b.shape[0] == layer.weight.shape[0]
        if not fitting or a.ndim != layer.weight.ndim:
            raise ArchError(
                f"the adapter's {name} has factors {tuple(factors.a.shape)} and {tuple(factors.b.shape)}, "
                f"and {module} has the shape {tuple(layer.weight.shape)}: "
                "it was made for a model of other widths"
            )
        if self._public.get(name) == self._embedder:  # the published order of a patch's columns
            patch = self._model.config["patch_size"]
            a = rearrange(a, "r (py px c) -> r (c py px)", py=patch, px=patch)
        return Factors(a=a, b=b)


def matched(
    tensors: Mapping[str, Tensor], lora: LoraFile, modules: Modules
) -> tuple[dict[str, Factors], list[str], list[str]]:
    """Return (factors by the model's module, names that are no factor's, modules that the model does not
    have).
    """
    factors, strange = factors_of(tensors, lora)
    found, foreign = {}, []
    for name, pair in _split_qkv(factors, modules).items():
        module = modules.find(name, pair.a.shape[1])
        if module is None:
            foreign.append(name)
        else:
            found[module] = modules.fits(module, name, pair)
    return found, strange, foreign


def _split_qkv(factors: Mapping[str, Factors], modules: Modules) -> dict[str, Factors]:
    """Return adapters of ComfyUI's packed projections, as three that share their first factor."""
    result: dict[str, Factors] = {}
    for name, pair in factors.items():
        block = name.removesuffix(".qkv")
        parts = [f"{block}.to_{letter}" for letter in "qkv"]
        if block == name or not all(modules.find(part) for part in parts):
            alias = name.removesuffix(".out") + ".to_out.0" if name.endswith(".attention.out") else name
            result[alias if modules.find(alias) else name] = pair
            continue
        for part, b in zip(parts, pair.b.chunk(3), strict=True):
            result[part] = Factors(a=pair.a, b=b)
    return result


_CONVERTERS = {
    "z-image": "ZImageLoraLoaderMixin",
    "flux": "FluxLoraLoaderMixin",
    "flux2": "Flux2LoraLoaderMixin",
    "qwen-image": "QwenImageLoraLoaderMixin",
    "sd3": "SD3LoraLoaderMixin",
    "lumina2": "Lumina2LoraLoaderMixin",
    "sana": "SanaLoraLoaderMixin",
}


def by_family(family: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Return the tensors by diffusers' names for the family's modules; None where its converter knows them
    not.
    """
    converter = getattr(lora_pipeline, _CONVERTERS.get(family, ""), None)
    if converter is None:
        return None
    try:
        translated = converter.lora_state_dict(dict(tensors))
    except (ValueError, KeyError, IndexError, AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None  # each of these is what some converter raises for names that it does not know
    return translated if isinstance(translated, dict) else dict(translated[0])

"""LoRAs on a pipeline: load, weigh, fuse and unload them, by diffusers' names for these things.

An adapter goes onto the modules of the whole model: those made for the source onto the trunk, which has the
source's blocks, and those of pixel-space models onto the head and the pixel embedder as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import Tensor, nn

from l2p_arch.arguments import check_paths
from l2p_arch.errors import ArchError
from l2p_arch.files.adapter_files import LoraFile, read_lora, refuse_other_kinds
from l2p_arch.sampling.adapted_modules import Modules, by_family, matched


class Adapters(LoraBaseMixin):
    """`L2PPipeline`'s methods about LoRAs; `set_adapters`, `get_active_adapters`, `get_list_adapters`,
    `delete_adapters`, `enable_lora` and `disable_lora` are diffusers' own."""

    _lora_loadable_modules = ["transformer"]  # noqa: RUF012 (diffusers declares it so)
    transformer_name = "transformer"
    transformer: Any
    _originals: dict[str, Tensor] | None = None

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        strict: bool = True,
        **hub: Any,
    ) -> None:
        """Load a LoRA and make it active, alone; `set_adapters` activates several, with weights.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a directory that holds one, a
                repository of the Hub, or tensors by name. The layouts of diffusers, PEFT, ai-toolkit and
                ComfyUI (`diffusion_model.`) and kohya are known, and what the family's converter in diffusers
                translates.
            adapter_name: for `set_adapters`; the next of default_0, default_1, ... unless given.
            weight_name: the file within a directory or repository.
            strict: refuse an adapter of which something is not used; False leaves that out.
            hub: `revision`, `token`, `cache_dir`, `local_files_only` of a repository's download.

        Raises:
            ArchError: it is no LoRA, is damaged, or does not fit this model.
        """
        _need_peft()
        if self._originals is not None:
            raise ArchError(
                "an adapter is fused into the weights; unfuse_lora first, or load all before fusing"
            )
        lora = _read(pretrained_model_name_or_path_or_dict, weight_name, hub)
        state = self._fitted(lora, strict)
        model = self.transformer
        name = adapter_name or _free_name(model)
        if not isinstance(name, str) or "." in name:
            raise ArchError(f"adapter_name is {name!r}; wanted text without a dot")
        if name in getattr(model, "peft_config", {}):
            raise ArchError(f"an adapter {name!r} is loaded already; give another adapter_name, or unload it")
        model.load_lora_adapter(state, prefix=None, adapter_name=name)
        _check_loaded(model, state, name, lora.name)
        model.set_adapters([name], [1.0])

    def _fitted(self, lora: LoraFile, strict: bool) -> dict[str, Tensor]:
        """Return the adapter's tensors by PEFT's names for the modules of the whole model."""
        model = self.transformer
        modules = Modules(model)
        found, strange, foreign = matched(lora.tensors, lora, modules)
        if foreign and not all(modules.is_latent_end(name) for name in foreign):
            translated = by_family(model.source_family.name, lora.tensors)
            if translated is not None:
                found, strange, foreign = matched(translated, lora, modules)
        unused = [*foreign, *strange]
        if not found:
            some = ", ".join(sorted(unused)[:3])
            raise ArchError(
                f"{lora.name} fits nothing in this {model.source_family.name} model; it adapts {some}: "
                "was it trained for another family?"
            )
        if unused and strict:
            ends = [name for name in foreign if modules.is_latent_end(name)]
            why = (
                "the source's latent ends, which a pixel-space model does not have"
                if ends
                else "no part here"
            )
            some = ", ".join(sorted(ends or unused)[:3])
            raise ArchError(
                f"{len(unused)} of {len(unused) + len(found)} parts of {lora.name} are for {why}: {some}; "
                "leave them out with strict=False"
            )
        state = {}
        for module, factors in found.items():
            state[f"{module}.lora_A.weight"] = factors.a.contiguous()
            state[f"{module}.lora_B.weight"] = factors.b.contiguous()
        return state

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the active adapters to the weights, for the speed of a model without any.

        The weights as they were stay in host memory, so that `unfuse_lora` puts them back bit by bit;
        `unload_lora_weights` after it keeps the fused weights, as in diffusers.
        """
        self._need_adapter()
        if self._originals is not None:
            raise ArchError("an adapter is fused already; unfuse_lora first")
        if any(
            not layer.get_base_layer().weight.is_floating_point() for _, layer in _adapted(self.transformer)
        ):
            raise ArchError(
                "this model's weights are quantised, and an adapter cannot be added to whole numbers; use it "
                "without fusing, or merge it before quantising"
            )
        self._originals = {
            name: layer.get_base_layer().weight.detach().to("cpu", copy=True)
            for name, layer in _adapted(self.transformer)
        }
        try:
            super().fuse_lora(["transformer"], lora_scale, safe_fusing, adapter_names, **kwargs)
        except BaseException:
            self.unfuse_lora()
            raise

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Put the weights back as they were before `fuse_lora`; the adapters are active beside them again."""
        if self._originals is None:
            raise ArchError("no adapter is fused; nothing to take out")
        super().unfuse_lora(["transformer"], **kwargs)
        for name, layer in _adapted(self.transformer):
            with torch.no_grad():
                layer.get_base_layer().weight.copy_(self._originals[name])
        self._originals = None

    def unload_lora_weights(self) -> None:
        """Remove all adapters; the model is what it was before them, bit by bit, unless they were fused."""
        self._originals = None
        if getattr(self.transformer, "peft_config", None):
            super().unload_lora_weights()

    def _need_adapter(self) -> None:
        if not getattr(self.transformer, "peft_config", None):
            raise ArchError("no adapter is loaded; call load_lora_weights first")


def _read(source: str | Path | Mapping[str, Tensor], weight_name: str | None, hub: Any) -> LoraFile:
    if isinstance(source, Mapping):
        refuse_other_kinds("the state dict", source)
        return LoraFile(name="the state dict", tensors=source)
    check_paths(pretrained_model_name_or_path_or_dict=source)
    path = Path(source)
    if path.exists():
        return read_lora(path / weight_name if weight_name else path)
    if isinstance(source, Path) or len(path.parts) != 2 or path.suffix == ".safetensors":
        raise ArchError(f"there is no {source}; give a LoRA's safetensors file")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = weight_name or "pytorch_lora_weights.safetensors"
    try:
        return read_lora(Path(hf_hub_download(str(source), name, **hub)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ArchError(
            f"{source} is no file here, and {name} was not found in a repository of that name on the Hub; "
            "name the file with weight_name, or give a path"
        ) from error


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _check_loaded(model: Any, state: Mapping[str, Tensor], adapter: str, name: str) -> None:
    """Raise, with the adapter gone again, unless every tensor lies where it belongs."""
    own = dict(model.named_parameters())
    for key, value in state.items():
        module, _, part = key.removesuffix(".weight").rpartition(".")
        there = own.get(f"{module}.{part}.{adapter}.weight")
        if there is None or not torch.equal(there.detach().cpu(), value.detach().to(there.dtype).cpu()):
            model.delete_adapters([adapter])
            raise ArchError(f"{name}: {module} was not taken over by this version of peft and diffusers")


def _free_name(model: Any) -> str:
    taken, number = getattr(model, "peft_config", {}), 0
    while f"default_{number}" in taken:
        number += 1
    return f"default_{number}"


def _need_peft() -> None:
    from diffusers.utils import USE_PEFT_BACKEND

    if not USE_PEFT_BACKEND:
        raise ArchError('adapters need peft; install it with pip install "l2p-arch[lora]"')

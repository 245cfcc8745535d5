"""LoRA files of every layout in circulation, as one: a module of the model, its two factors, nothing else.

Known are diffusers', PEFT's, ai-toolkit's and ComfyUI's (`diffusion_model.`), and kohya's names; what remains
is translated by the family's own converter in diffusers. Alpha is multiplied into the factors, so that an
adapter of weight 1 is what its training made.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_arch.errors import ArchError
from l2p_arch.files.directories import read_json
from l2p_arch.files.tensor_files import StoredTensor, read_header

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "lora.safetensors")
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
_PARTS = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_down": "A",
    "lora_up": "B",
    "lora.down": "A",
    "lora.up": "B",
}
_KEY = re.compile(r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)"
                  r"(\.(?P<adapter>[^.]+))?\.weight")  # fmt: skip
KINDS = {
    ".lokr_": "a LoKr (Kronecker factors)",
    ".hada_w": "a LoHa (Hadamard factors)",
    ".dora_scale": "a DoRA (LoRA with magnitudes)",
    ".lora_magnitude_vector": "a DoRA (LoRA with magnitudes)",
    ".oft_": "an OFT (orthogonal rotations)",
    ".boft_": "a BOFT (butterfly rotations)",
    ".ia3_l": "an IA3 (scaling vectors)",
    ".vera_lambda": "a VeRA (shared random factors)",
    ".on_input": "an IA3 (scaling vectors)",
    ".lora_mid.": "a LoCon with Tucker factors",
    ".glora_": "a GLoRA",
}
"""What stands in the names of adapters that are no LoRA, and what they are called."""
_TEXT = re.compile(r"(lora_te\d?_|lora_text_encoder|text_encoders?(_\d)?[._]|clip_[lg]\.|t5xxl\.)")


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """The tensors of one adapter as they lie in its file, and the alphas that its metadata have."""

    name: str
    tensors: Mapping[str, Tensor]
    alpha: float | None = None
    """Of every module that names none of its own; None is the rank."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False


def kind_of_adapter(names: Any) -> str | None:
    """Return what an adapter with tensors of these names is: "a LoRA", or one of `KINDS`; None if it is
    none.
    """
    names = list(names)
    for mark, kind in KINDS.items():
        if any(mark in name for name in names):
            return kind
    if any(name.endswith((".diff", ".diff_b")) for name in names):
        return "a full difference of weights"
    return "a LoRA" if any(_KEY.fullmatch(name) for name in names) else None


def read_lora(path: Path) -> LoraFile:
    """Read an adapter from a safetensors file, or from a directory that holds one.

    Raises:
        ArchError: there is none, it is damaged, or it is an adapter of another kind.
    """
    path = _file_in(path) if path.is_dir() else path
    stored, metadata = read_header(path)
    refuse_other_kinds(path.name, stored)
    alpha, pattern, stabilised = _alphas(path, metadata)
    return LoraFile(
        name=path.name,
        tensors={name: tensor.read() for name, tensor in stored.items()},
        alpha=alpha,
        alpha_pattern=pattern,
        rank_stabilised=stabilised,
    )


def refuse_other_kinds(name: str, tensors: Mapping[str, StoredTensor | Tensor]) -> None:
    """Raise for what is no LoRA, by what it is."""
    kind = kind_of_adapter(tensors)
    if kind == "a LoRA":
        return
    if kind is not None:
        raise ArchError(
            f"{name} is {kind}, and only LoRAs (two low-rank factors per layer) are loaded; convert it to a "
            "LoRA, or merge it into the source before `l2p-arch convert`"
        )
    raise ArchError(
        f"{name} is no adapter: no tensor of it is a LoRA's, such as X.lora_A.weight or X.lora_down.weight; "
        "`l2p-arch identify` says what it is"
    )


def _file_in(directory: Path) -> Path:
    named = [directory / name for name in _NAMES if (directory / name).is_file()]
    found = named[:1] or sorted(directory.glob("*.safetensors"))
    if len(found) != 1:
        raise ArchError(
            f"{directory} holds {len(found)} safetensors files and none of {', '.join(_NAMES)}; give the "
            "adapter's own file"
        )
    return found[0]


def _alphas(path: Path, metadata: Mapping[str, str]) -> tuple[float | None, dict[str, float], bool]:
    """Return (alpha, alphas by module, rank-stabilised) as PEFT's config beside the file or diffusers'
    inside it.
    """
    config: Mapping[str, Any] = {}
    if "lora_adapter_metadata" in metadata:
        try:
            config = json.loads(metadata["lora_adapter_metadata"])
            config = {key.rpartition("transformer.")[2]: value for key, value in config.items()}
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ArchError(f"{path}: its metadata lora_adapter_metadata is no JSON object") from error
    elif (path.parent / "adapter_config.json").is_file() and path.name == "adapter_model.safetensors":
        config = read_json(path.parent / "adapter_config.json", f"{path.parent} is damaged")
    alpha, pattern = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    numbers = [value for value in (alpha, *getattr(pattern, "values", list)()) if value is not None]
    if not isinstance(pattern, dict) or not all(isinstance(value, int | float) for value in numbers):
        raise ArchError(f"{path}: the adapter's config has alphas that are no numbers; write it again")
    return alpha, pattern, bool(config.get("use_rslora"))


@dataclass(frozen=True, kw_only=True)
class Factors:
    """One adapted module: the update of its weight is B A, of a convolution as PEFT has it."""

    a: Tensor
    b: Tensor


def factors_of(tensors: Mapping[str, Tensor], lora: LoraFile) -> tuple[dict[str, Factors], list[str]]:
    """Return (factors by the module's name in the file without prefix, names that belong to no factor)."""
    import torch

    pairs: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    strange = []
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match and not _TEXT.match(key):
            pairs.setdefault(without_prefix(match["module"]), {})[_PARTS[match["part"]]] = value
        elif key.endswith(".alpha") and not _TEXT.match(key):
            if value.numel() != 1:
                raise ArchError(f"{lora.name}: {key} has {value.numel()} values, wanted one; fetch it again")
            alphas[without_prefix(key.removesuffix(".alpha"))] = float(value)
        else:
            strange.append(key)
    strange += [f"{module}.alpha" for module in alphas if module not in pairs]
    made = {}
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            strange.append(f"{module}.lora_{next(iter(pair))}.weight")
            continue
        shapes = [tuple(one.shape) for one in (pair["A"], pair["B"])]
        if min(map(len, shapes)) < 2 or not pair["A"].numel() or not pair["B"].numel():
            raise ArchError(
                f"{lora.name}: {module} has factors {shapes[0]} and {shapes[1]}, wanted two matrices or "
                "convolutions with a rank of 1 or more; the file is damaged"
            )
        rank = pair["A"].shape[0]
        alpha = alphas.get(module, _by_pattern(lora.alpha_pattern, module, lora.alpha))
        scale = 1.0 if alpha is None else alpha / (rank**0.5 if lora.rank_stabilised else rank)
        if pair["B"].shape[1] != rank:
            raise ArchError(
                f"{lora.name}: {module} has factors {tuple(pair['A'].shape)} and {tuple(pair['B'].shape)}, "
                "which do not fit together; the file is damaged"
            )
        if not math.isfinite(scale):
            raise ArchError(
                f"{lora.name}: {module} has alpha {alpha}, wanted a number; fetch the adapter again"
            )
        if not all(bool(torch.isfinite(one.float()).all()) for one in pair.values()):
            raise ArchError(f"{lora.name}: {module} holds NaN or infinity; train or fetch the adapter again")
        made[module] = Factors(a=pair["A"], b=pair["B"] if scale == 1 else pair["B"].float() * scale)
    return made, strange


def _by_pattern(pattern: Mapping[str, float], module: str, default: float | None) -> float | None:
    for key, value in pattern.items():
        try:
            fits = re.fullmatch(rf"(.*\.)?({key.removeprefix('^')})", module)
        except re.error as error:
            raise ArchError(
                f"alpha_pattern {key!r} is no pattern ({error}); mend the adapter's config"
            ) from None
        if fits:
            return value
    return default


def without_prefix(module: str) -> str:
    """Return a module's name without what tools write before it."""
    for prefix in (*_PREFIXES, *_FLAT_PREFIXES):
        if module.startswith(prefix):
            return without_prefix(module.removeprefix(prefix))
    return module

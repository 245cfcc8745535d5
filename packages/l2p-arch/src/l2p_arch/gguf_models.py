"""GGUF files of L2P models: what stable-diffusion.cpp and ComfyUI's GGUF loaders read.

The names are ComfyUI's without a prefix, which stable-diffusion.cpp knows as well as the published ones. It
reads the 1K head with the published widths only; other models are written all the same, for other readers.
Needs the extra l2p-arch[gguf].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_arch.arguments import check_flags, check_paths
from l2p_arch.errors import ArchError
from l2p_arch.files.comfyui_layout import PREFIX, comfyui_names
from l2p_arch.files.components import name_of
from l2p_arch.files.directories import appearing_file
from l2p_arch.files.tensor_files import StoredTensor
from l2p_arch.files.tensor_writing import PlannedTensor
from l2p_arch.public_models import plan_public

if TYPE_CHECKING:
    from torch import Tensor

GGUF_KINDS = ("keep", "f32", "bf16", "f16", "q8_0")
"""How weights are stored: as they are, or cast; "q8_0" keeps all but the blocks' matrices as they are."""
_ARCHITECTURE = "lumina2"  # by which ComfyUI's GGUF loaders know the trunk of a Z-Image
_STORED = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32"}
_MATRIX = re.compile(r"(layers|noise_refiner|context_refiner)\.\d+\.(attention|feed_forward)\.\w+\.weight")
_BLOCK = 32  # values of a row that share a scale in Q8_0
_WIDTHS = (64, 128, 256, 512)  # of the head that stable-diffusion.cpp reads


def export_gguf(
    model: Path | str, file: Path | str, *, kind: str = "keep", overwrite: bool = False
) -> dict[str, Any]:
    """Write a model directory's transformer as one GGUF file.

    Vectors and padding tokens are in float32 whatever the kind, as ggml wants them; that changes no value.
    One tensor is held at a time.

    Args:
        kind: one of `GGUF_KINDS`.
        overwrite: replace an existing file.

    Returns:
        "layout", "tensors", "quantised" (their number) and "notes", sentences about who cannot read it.

    Raises:
        ArchError: no public layout holds the model, the kind is unknown, or the package gguf is missing.
    """
    check_paths(model=model, file=file)
    check_flags(overwrite=overwrite)
    model, file = Path(model), Path(file)
    if kind not in GGUF_KINDS:
        raise ArchError(f"GGUF kind {kind!r} is not one of {', '.join(GGUF_KINDS)}")
    gguf = _gguf()
    planned = plan_public(model)
    plan, layout = comfyui_names(planned.tensors), planned.layout
    quantised = 0
    with (
        appearing_file(file, [model], overwrite) as partial,
        closing(gguf.GGUFWriter(partial, _ARCHITECTURE)) as writer,  # also where the export is refused
    ):
        writer.add_name(name_of(model))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_string("l2p.layout", layout.name)
        for key, value in planned.metadata.items():
            writer.add_string(key, value)
        stored = [_type_of(tensor, kind) for tensor in plan]
        for tensor, name in zip(plan, stored, strict=True):
            _announce(writer, gguf, tensor, name)
            quantised += name == "Q8_0"
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, name in zip(plan, stored, strict=True):
            writer.write_tensor_data(_values(gguf, tensor, name))
    notes = _notes(planned.config, layout.name)
    return {"layout": layout.name, "tensors": len(plan), "quantised": quantised, "notes": notes}


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise ArchError('GGUF files need the package gguf: pip install "l2p-arch[gguf]"') from None
    return gguf


def _notes(config: Any, layout: str) -> list[str]:
    """Return who cannot read it."""
    widths = tuple(config["head_channels"])
    if layout == "1k" and widths == _WIDTHS and config["patch_size"] == 16:
        return []
    return [f"stable-diffusion.cpp reads patch 16 with a head of the widths {_WIDTHS} only; this is {widths}"]


def _bare(tensor: PlannedTensor) -> str:
    return tensor.name.removeprefix(PREFIX)


def _type_of(tensor: PlannedTensor, kind: str) -> str:
    """Return the ggml type of a tensor."""
    if len(tensor.shape) < 2 or _bare(tensor).endswith("pad_token"):
        return "F32"
    if kind == "q8_0" and _MATRIX.fullmatch(_bare(tensor)) and tensor.shape[-1] % _BLOCK == 0:
        return "Q8_0"
    if kind in ("f32", "bf16", "f16"):
        return kind.upper()
    if tensor.dtype not in _STORED:
        raise ArchError(
            f"{_bare(tensor)} is stored as {tensor.dtype}, which GGUF does not know; give --kind f32"
        )
    return _STORED[tensor.dtype]


def _announce(writer: Any, gguf: Any, tensor: PlannedTensor, name: str) -> None:
    """Enter a tensor into the header; its values come later."""
    import numpy as np

    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    *rows, columns = tensor.shape
    shape: Sequence[int] = [*rows, columns // block * size]  # bytes, of which the writer makes values
    count = 1
    for side in shape:
        count *= side
    writer.add_tensor_info(_bare(tensor), shape, np.dtype(np.uint8), count, raw_dtype=kind)


def _values(gguf: Any, tensor: PlannedTensor, name: str) -> Any:
    """Return the bytes of a tensor in a ggml type, as an array of uint8."""
    import torch

    value: Tensor = tensor.origin.read() if isinstance(tensor.origin, StoredTensor) else tensor.origin()
    if name == "Q8_0":
        return gguf.quants.quantize(value.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    cast = value.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]).contiguous()
    if name == "F16" and bool((cast.isinf() & value.float().isfinite()).any()):
        raise ArchError(f"{_bare(tensor)} has values beyond float16's 65504; give --kind bf16 or f32")
    return cast.view(torch.uint8).numpy()

"""What a file or directory is, by its content and never by its name. No torch is imported for it."""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from l2p_arch.arguments import check_paths
from l2p_arch.errors import ArchError
from l2p_arch.files.adapter_files import kind_of_adapter
from l2p_arch.files.comfyui_layout import is_comfyui, without_prefix
from l2p_arch.files.directories import read_json
from l2p_arch.files.tensor_files import StoredTensor, read_header
from l2p_arch.source_formats import SOURCE_FORMATS

KNOWN_FINGERPRINTS = {
    "577b2d3e0acea1fb784ca600f966805e": "L2P-Z-Image 1K",
    "69e8fd5b562ea858b9f864508c1263b3": "L2P-Z-Image 4K",
    "df0e4e865d39501e2fe96c7ea8aa40f6": "L2P-Z-Image 8K",
    "e6094ba663b7c10011eb47db072ead0b": "L2P-Z-Image 10K",
}


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return the field's structural fingerprint: md5 over the sorted, comma-joined names and name:shape
    strings.
    """
    if not isinstance(shapes, Mapping):
        raise ArchError(f"shapes is {shapes!r}; wanted names with their shapes")
    parts = [*shapes, *(f"{name}:{'_'.join(map(str, shape))}" for name, shape in shapes.items())]
    return hashlib.md5(",".join(sorted(parts)).encode(), usedforsecurity=False).hexdigest()


def identify(path: Path | str) -> str:
    """Say in a few words what a file is, by its content and never by its name."""
    check_paths(path=path)
    path = Path(path)
    if not path.is_file():
        return _identify_directory(path) if path.is_dir() else "missing"
    try:
        tensors, metadata = read_any_header(path)
    except ArchError as error:
        return str(error).removeprefix(f"{path} ").removeprefix("is ")
    names = tensors.keys()
    known = KNOWN_FINGERPRINTS.get(fingerprint({name: tensor.shape for name, tensor in tensors.items()}))
    if known:
        return f"the published layout of {known}"
    if metadata.get("kind") == "l2p-trained-delta":
        return "a trained-delta file; merge it with its base"
    adapter = kind_of_adapter(names)
    if adapter == "a LoRA":
        return "a LoRA; load it with L2PPipeline.load_lora_weights"
    if adapter or any(name.endswith(".alpha") for name in names):
        return f"{adapter or 'an adapter of another kind'}, which is not loaded; LoRAs are"
    comfyui = is_comfyui(tensors)
    bare = {without_prefix(name) for name in names}
    if any(name.startswith("local_decoder.") for name in bare):
        return f"an L2P model in {'its ComfyUI' if comfyui else 'a single-file'} layout"
    if comfyui:
        return "a latent Z-Image transformer in ComfyUI's layout; surgery starts from its diffusers directory"
    if any(name.startswith("detailer_head.") for name in names):
        return "the weights of an L2P model directory; give that directory"
    if any(name.startswith("dec_net.") for name in names):
        return "a pixel-space Z-Image of another kind (dec_net), not an L2P model"
    if any(name.startswith("all_final_layer.") for name in names):
        return "a latent Z-Image transformer; surgery starts from its diffusers directory"
    return f"a safetensors file of another model ({len(names)} tensors, such as {min(names, default='none')})"


def _identify_directory(path: Path) -> str:
    try:
        index = read_json(path / "model_index.json", "no diffusers pipeline directory")
        config = read_json(path / "transformer" / "config.json", "a pipeline directory without a transformer")
    except ArchError as error:
        return f"a directory, but {error}"
    family = pipeline_family(path)
    if config.get("_class_name") == "L2PTransformer":
        return f"an L2P model directory ({family}, patch {config.get('patch_size')})"
    if family:
        return f"a latent pipeline of the family {family}; convert makes a pixel-space one of it"
    return f"a {index.get('_class_name')} directory, which is of no known family"


def pipeline_family(path: Path) -> str | None:
    """Return the family of a pipeline directory, latent or pixel-space, by its transformer's config; None
    where there is none."""
    try:
        read_json(path / "model_index.json", "")
        config = read_json(path / "transformer" / "config.json", "")
    except ArchError:
        return None
    if config.get("_class_name") == "L2PTransformer":
        return str(config.get("family"))
    for known in SOURCE_FORMATS.values():
        if config.get("_class_name") in (known.transformer_class, *known.older_classes):
            return known.family
    return None


def read_any_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """As `read_header`, and a pickle is named for what it is.

    Its first bytes decide only where the file is no safetensors file: a header of 640 bytes begins with them.
    """
    try:
        return read_header(path)
    except ArchError as error:
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"GGUF":
            raise ArchError(f"{path} is a GGUF file, which l2p-arch writes and does not read") from error
        if zipfile.is_zipfile(path) or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
            raise ArchError(
                f"{path} is a pickle, which is never loaded; convert it to safetensors where it comes from"
            ) from error
        raise

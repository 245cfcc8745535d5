"""What a source weighs, part by part: the files of its directory, or those of the published model."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from l2p_arch.families.facts import FullSize
from l2p_arch.files.directories import read_json
from l2p_arch.files.tensor_files import VARIANT_FILE, read_header

TRANSFORMER = "transformer"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component of a pipeline."""

    parameters: int
    stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class SourceWeights:
    """The parts of a source by their names; `disk_bytes` is all of its files."""

    parts: Mapping[str, Part]
    disk_bytes: int

    @property
    def parameter_bytes(self) -> float:
        """Of one parameter of the transformer, as stored."""
        return self.parts[TRANSFORMER].stored_bytes / self.parts[TRANSFORMER].parameters

    @property
    def others_bytes(self) -> int:
        """Stored, besides the transformer."""
        return sum(part.stored_bytes for name, part in self.parts.items() if name != TRANSFORMER)

    def in_memory(self, *, cpu_offload: bool, dtype: str, pixel_parameters: int | None = None) -> int:
        """Return bytes on the GPU while it paints: of all parts, or by turns of the largest.

        Args:
            pixel_parameters: of the pixel-space transformer, for the pipeline that has one and no VAE.
        """
        counts = {name: part.parameters for name, part in self.parts.items()}
        if pixel_parameters is not None:
            counts = {name: count for name, count in counts.items() if name != "vae"}
            counts[TRANSFORMER] = pixel_parameters
        return (max if cpu_offload else sum)(counts.values()) * (4 if dtype == "float32" else 2)


def published(known: FullSize | None, parameters: int) -> SourceWeights:
    """Return those of a family's published model, whose transformer has about as many parameters as the
    pixel model's.
    """
    stored = known.transformer_bytes if known else 2
    others = known.others if known else {}
    parts = {TRANSFORMER: Part(parameters=parameters, stored_bytes=parameters * stored)}
    parts |= {name: Part(parameters=count, stored_bytes=count * 2) for name, count in others.items()}
    return SourceWeights(parts=parts, disk_bytes=sum(part.stored_bytes for part in parts.values()))


def of_directory(model: Path) -> SourceWeights:
    """Return those of a diffusers directory, from the headers of its files."""
    index = read_json(model / "model_index.json", f"{model} is no diffusers directory")
    parts = {name: part for name in index if (part := _part(model / name)) is not None}
    files = [path for path in model.rglob("*") if path.is_file()]
    return SourceWeights(parts=parts, disk_bytes=sum(path.stat().st_size for path in files))


def _part(folder: Path) -> Part | None:
    files = sorted(folder.glob("*.safetensors"))
    # The same weights may lie there a second time, in another precision.
    files = [path for path in files if not VARIANT_FILE.fullmatch(path.name)] or files
    if not files:
        return None
    tensors = [tensor for path in files for tensor in read_header(path)[0].values()]
    return Part(
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        stored_bytes=sum(tensor.stop - tensor.start for tensor in tensors),
    )

"""The source of a surgery: a diffusers pipeline directory that has been looked at but not loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_arch.errors import ArchError
from l2p_arch.files.components import components_to_keep
from l2p_arch.files.directories import read_json
from l2p_arch.files.tensor_files import StoredTensor, index_directory
from l2p_arch.source_formats import SourceFormat, find_source_format

if TYPE_CHECKING:
    from l2p_arch.families import Family


@dataclass(frozen=True, kw_only=True)
class Source:
    """A diffusers pipeline directory that has been looked at but not loaded."""

    directory: Path
    format: SourceFormat
    pipeline_index: Mapping[str, Any]
    transformer_config: Mapping[str, Any]
    components: Sequence[str]
    """Text encoders, tokenizers and the scheduler: what a converted model takes along."""
    tensors: Mapping[str, StoredTensor]

    @property
    def family(self) -> Family:
        """The family with all its functions."""
        from l2p_arch.families import find_family

        return find_family(self.format.family)

    @property
    def has_vae(self) -> bool:
        """Whether the autoencoder is there, which some initialisations measure."""
        return "vae" in self.pipeline_index and (self.directory / "vae").is_dir()


def open_source(source: Path) -> Source:
    """Look at a pipeline directory without loading anything; ArchError says what is wrong with it."""
    if not source.is_dir():
        raise ArchError(f"{source} is not a directory; {_how_to_get(source)}")
    index = read_json(source / "model_index.json", f"{source} is no diffusers pipeline directory")
    if "L2PTransformer" in (index.get("transformer") or ()):
        raise ArchError(f"{source} is already a pixel-space model; surgery starts from a latent one")
    config = read_json(source / "transformer" / "config.json", f"{source} has no transformer to start from")
    known = find_source_format(config.get("_class_name", ""))
    return Source(
        directory=source,
        format=known,
        pipeline_index=index,
        transformer_config=config,
        components=components_to_keep(source, known.text_components, known.family),
        tensors=index_directory(source / "transformer"),
    )


def _how_to_get(source: Path) -> str:
    """Refuse a repository's name of the Hub, which is what most people have: nothing is downloaded without
    being asked.
    """
    if source.is_absolute() or len(source.parts) != 2 or source.exists() or ".." in source.parts:
        return "give a diffusers text-to-image directory"
    return (
        f"if it is a repository of the Hub, fetch it first: `hf download {source.as_posix()} --local-dir "
        f"{source.name}`, and give {source.name}"
    )

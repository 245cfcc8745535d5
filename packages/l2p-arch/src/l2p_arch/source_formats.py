"""How the directories of the source families look on disk: all that surgery must know to begin to copy.

Apart from `l2p_arch.families`, because this much needs no torch, which takes seconds to import.
"""

from dataclasses import dataclass

from l2p_arch.errors import ArchError


@dataclass(frozen=True, kw_only=True)
class SourceFormat:
    """A family's diffusers directories."""

    family: str
    """Key of `FAMILIES`, for example "z-image"."""
    transformer_class: str
    """Name of the diffusers class of the transformer."""
    older_classes: tuple[str, ...] = ()
    """Names that published configs still have for it."""
    ends: tuple[str, ...]
    """Prefixes of the tensors that belong to the latent space and are dropped, by name and never by shape."""
    text_components: tuple[str, ...] = ("text_encoder", "tokenizer")
    """Pipeline components that encode text, and that a converted model takes along."""

    def is_end(self, tensor_name: str) -> bool:
        """Return True for a tensor of the transformer that is dropped."""
        return any(tensor_name == end or tensor_name.startswith(f"{end}.") for end in self.ends)


_FORMATS = (
    SourceFormat(
        family="z-image",
        transformer_class="ZImageTransformer2DModel",
        ends=("all_x_embedder", "all_final_layer"),
    ),
    SourceFormat(
        family="flux",
        transformer_class="FluxTransformer2DModel",
        ends=("x_embedder", "norm_out", "proj_out"),
        text_components=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    ),
    SourceFormat(
        family="qwen-image",
        transformer_class="QwenImageTransformer2DModel",
        ends=("img_in", "norm_out", "proj_out"),
    ),
    SourceFormat(
        family="sd3",
        transformer_class="SD3Transformer2DModel",
        ends=("pos_embed.proj", "norm_out", "proj_out"),
        text_components=(
            *("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
            *("text_encoder_3", "tokenizer_3"),
        ),
    ),
    SourceFormat(
        family="lumina2",
        transformer_class="Lumina2Transformer2DModel",
        ends=("x_embedder", "norm_out"),
    ),
    SourceFormat(
        family="flux2",
        transformer_class="Flux2Transformer2DModel",
        ends=("x_embedder", "norm_out", "proj_out"),
    ),
    SourceFormat(
        family="sana",
        transformer_class="SanaTransformer2DModel",
        ends=("patch_embed.proj", "scale_shift_table", "proj_out"),
    ),
    SourceFormat(
        family="prx",
        transformer_class="PRXTransformer2DModel",
        ends=("img_in", "final_layer"),
    ),
    SourceFormat(
        family="pixart-sigma",
        transformer_class="PixArtTransformer2DModel",
        older_classes=("Transformer2DModel",),
        ends=("pos_embed.proj", "scale_shift_table", "proj_out"),
    ),
)
SOURCE_FORMATS = {known.family: known for known in _FORMATS}


def source_format(family: str) -> SourceFormat:
    """Return the format of a family, or an ArchError that lists the known ones."""
    if family not in SOURCE_FORMATS:
        raise ArchError(f"unknown family {family!r}; known: {', '.join(SOURCE_FORMATS)}")
    return SOURCE_FORMATS[family]


def find_source_format(transformer_class: str) -> SourceFormat:
    """Return the format whose transformer is that diffusers class, or an ArchError that lists the known
    ones.
    """
    for known in _FORMATS:
        if transformer_class in (known.transformer_class, *known.older_classes):
            return known
    classes = ", ".join(f"{known.transformer_class} ({known.family})" for known in _FORMATS)
    raise ArchError(f"no family for a source transformer of class {transformer_class!r}; known: {classes}")

"""The aligned recipe: the source's whole transformer, last layer included, between two linear maps.

What is inherited is every tensor of the transformer, byte for byte; what is new are the maps, fitted on
calibration images (`l2p_arch.alignment`), and a Detailer Head that begins by adding nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from l2p_arch.files.mapping import unmapped
from l2p_arch.files.tensor_files import StoredTensor, variant
from l2p_arch.files.tensor_writing import PlannedTensor
from l2p_arch.libraries import quiet_libraries
from l2p_arch.surgery.recipes import DECODERS

if TYPE_CHECKING:
    from torch import Tensor

    from l2p_arch.alignment import Alignment
    from l2p_arch.families import Family
    from l2p_arch.surgery.source import Source


def inherited_tensors(source: Source, dtype: str | None) -> list[PlannedTensor]:
    """Return all tensors of the source's transformer under the names that they have in the trunk."""
    family = source.family
    plan = []
    for stored in source.tensors.values():
        name = name_in_trunk(family, source.transformer_config, stored.name)
        if name is None:
            continue
        shape = stored.shape
        if name == f"{family.embedder}.weight" and len(shape) == 4:
            # A convolution over a latent patch, whose bytes are those of one over the folded patch.
            shape = (shape[0], shape[1] * shape[2] * shape[3], 1, 1)
        origin = replace(stored, shape=shape)
        plan.append(
            PlannedTensor(name=f"trunk.{name}", dtype=dtype or stored.dtype, shape=shape, origin=origin)
        )
    return plan


def name_in_trunk(family: Family, config: Mapping[str, Any], name: str) -> str | None:
    """Return what a tensor of the source is called in a trunk with the patch of one token; None for an end of
    another patch size, of which some sources have several."""
    embedder = family.latent_embedder(config)
    ends = {embedder.name: family.embedder, embedder.answer or "": family.final_projection}
    for old, new in ends.items():
        if name.startswith(f"{old}."):
            return f"{new}{name.removeprefix(old)}"
        if old != new and name.startswith(f"{old.rpartition('.')[0]}."):
            return None
    return name


def aligned_tensors(
    model: Any,
    *,
    source: Source,
    decoder: str,
    start: str,
    images: Tensor,
    prompts: Sequence[str] | None,
    inherited: Sequence[PlannedTensor],
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the values of all new tensors by their names in `model` (on the meta device), and measures."""
    from l2p_arch.surgery.starts import SOURCELESS, pytorch_values

    alignment, measures = fit_alignment(model, source, decoder, images, prompts, inherited)
    made = pytorch_values(model, seed)
    for name, apply in SOURCELESS.items():
        if name in start.split("+"):
            apply(made, model, None, None)
    return made | {f"aligner.{name}": value for name, value in alignment.state_dict().items()}, measures


def fit_alignment(
    model: Any,
    source: Source,
    decoder: str,
    images: Tensor,
    prompts: Sequence[str] | None,
    inherited: Sequence[PlannedTensor],
) -> tuple[Alignment, dict[str, float]]:
    """Fit the maps on calibration images.

    Args:
        model: the new model, on the meta device.
        source: with its VAE.
        decoder: a key of `DECODERS`.
        images: (N, 3, H, W) in [-1, 1].
        prompts: what the images show, one each; None: nothing is known.
        inherited: the trunk's tensors, for decoders whose fit runs it.

    Returns:
        The alignment, on the CPU, and what was measured.
    """
    import torch

    from l2p_arch.alignment import Alignment, alignment_sizes
    from l2p_arch.surgery.alignment import fit_filters, fit_subspace, use_low_rank_decoder
    from l2p_arch.surgery.calibration import paired_grids

    config = model.config
    kind = DECODERS[decoder]
    sizes = alignment_sizes(config["alignment"])
    channels = source.family.latent_channels(source.transformer_config)
    alignment = Alignment(config["patch_size"], channels, **sizes)
    layout = source.family.latent_embedder(source.transformer_config)
    pairs = list(paired_grids(source, layout, images, config["patch_size"]))
    latents = torch.cat([latent for _, latent in pairs])
    measures = asdict(fit_subspace(alignment, images, latents))
    if kind.low_rank:
        use_low_rank_decoder(alignment)
    if kind.runs_source:
        left = _fit_filters(model, source, alignment, images, prompts, inherited, fit_filters)
        measures |= {f"eq_5_at_sigma_{sigma:.2f}": error for sigma, error in left.items()}
    return alignment, measures


_FILTER_TOKENS = 1024  # of the images that the source runs on, at every noise level
_SIDE = 256  # px of their crops


def _fit_filters(
    model: Any,
    source: Source,
    alignment: Alignment,
    images: Tensor,
    prompts: Sequence[str] | None,
    inherited: Sequence[PlannedTensor],
    fit: Any,
) -> dict[float, float]:
    """Run the source's transformer on noised crops and fit the filters to what it answers."""
    import torch

    patch = alignment.patch_size
    side = max(_SIDE // patch, 1) * patch
    crops = images[..., :side, :side].float()
    tokens = crops.shape[-2] * crops.shape[-1] // patch**2
    crops = crops[: max(8, _FILTER_TOKENS // tokens)]
    texts = [""] * len(crops) if prompts is None else list(prompts)[: len(crops)]
    runnable = type(model).from_config(dict(model.config)).eval()
    runnable.trunk.load_state_dict(
        {tensor.name.removeprefix("trunk."): _read(tensor.origin) for tensor in inherited}
    )
    runnable.aligner = alignment
    conditioning = encode(source, runnable.trunk, texts)

    @torch.no_grad()
    def predict(x_t: Tensor, sigma: Tensor, first: int) -> Tensor:
        latents, _ = runnable.predicted_latents(x_t, sigma, conditioning[first : first + len(x_t)])
        return latents

    return dict(fit(alignment, crops, predict))


def _read(origin: Any) -> Tensor:
    assert isinstance(origin, StoredTensor)
    return origin.read()


def encode(source: Source, trunk: Any, prompts: Sequence[str]) -> list[Any]:
    """Return the conditioning of prompts by the source's own text encoders."""
    import torch
    from diffusers import DiffusionPipeline

    quiet_libraries()
    kept = {name: None for name in ("transformer", "vae")}
    pipeline = DiffusionPipeline.from_pretrained(
        source.directory,
        **kept,
        local_files_only=True,
        use_safetensors=True,
        variant=variant(source.directory / "transformer"),
        **unmapped(source.directory),
    )
    family = source.family
    texts = {name: getattr(pipeline, name, None) for name in family.text_components}
    with torch.no_grad():
        return family.encode_text(
            {**texts, "trunk": trunk}, prompts, device=torch.device("cpu"), max_sequence_length=64
        )

"""The aligned recipe: the source's whole transformer, last layer included, between two linear maps.

What is inherited is every tensor of the transformer, byte for byte; what is new are the maps, fitted on
calibration images (`l2p_arch.alignment`), and a Detailer Head that begins by adding nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from l2p_arch.errors import ArchError
from l2p_arch.files.mapping import unmapped
from l2p_arch.files.tensor_files import StoredTensor, variant
from l2p_arch.files.tensor_writing import PlannedTensor
from l2p_arch.libraries import quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from l2p_arch.alignment import Alignment
    from l2p_arch.families import Family
    from l2p_arch.surgery.source import Source

AUTO = "auto"
ALIGNMENT_VERSION = 1
ENLARGED_VERSION = 2
READING_VERSION = 3
READINGS = {"subspace": 0, "wiener": 128}
"""What the trunk reads of pixels, by the directions in which it is corrected: the subspace alone, or the best
linear estimate of the source's z_t (`l2p_arch.alignment`). On the miniature 128 directions explain
0.69 of the latents of other images, and 384 explain 0.70."""
POLISH = 0.2
"""Of `L2PPipeline`: as little as a model needs that was trained for this pass (`polish_share` of l2p-train).
On the source's own images it costs a Frechet distance of 42, and 0.4 costs 67 (docs/notes/miniature.md)."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How the trunk's latent becomes an image before the head adds to it."""

    sizes: Mapping[str, int]
    """Arguments of `Alignment`."""
    low_rank: bool = False
    """s Q in place of least squares."""

    @property
    def runs_source(self) -> bool:
        """Whether its fit runs the source's transformer, and not only its VAE."""
        return bool(self.sizes.get("filter_sigmas"))


DECODERS: dict[str, Decoder] = {
    "low-rank": Decoder(sizes={"decoder_kernel": 1}, low_rank=True),
    "least-squares": Decoder(sizes={"decoder_kernel": 1}),
    "neighbours": Decoder(sizes={"decoder_kernel": 3}),
    "filters": Decoder(
        sizes={"decoder_kernel": 3, "filter_sigmas": 17, "decoded_kernel": 5, "pixel_kernel": 1}
    ),
    "closed-form": Decoder(
        sizes={"decoder_kernel": 3, "filter_sigmas": 17, "decoded_kernel": 5, "pixel_kernel": 5}
    ),
}
"""From the plainest on. "neighbours" reads the 3x3 tokens around a patch. The last two also fit x_0, per
noise level: "filters" on 5x5 pixels of what was decoded and the one of x_t, "closed-form" on 5x5 of both."""


def resolve_decoder(name: str) -> str:
    """Return what "auto" stands for, or an ArchError for a name that is no decoder."""
    if name == AUTO:
        return "closed-form"
    if name not in DECODERS:
        raise ArchError(f"unknown decoder {name!r}; known: {AUTO}, {', '.join(DECODERS)}")
    return name


def resolve_reading(name: str) -> str:
    """Return what "auto" stands for, or an ArchError for a name that is no reading."""
    if name == AUTO:
        return "wiener"
    if name not in READINGS:
        raise ArchError(f"unknown reading {name!r}; known: {AUTO}, {', '.join(READINGS)}")
    return name


def resolve_start(initialisation: str) -> str:
    """Return the start of the head: one that adds nothing; "auto" stands for He's values with a zero
    output.
    """
    start = "kaiming+zero-output" if initialisation == AUTO else initialisation
    unknown = [name for name in start.split("+") if name not in ("default", "kaiming", "zero-output")]
    if unknown:
        raise ArchError(
            f"initialisation {unknown[0]!r} belongs to the paper's recipe; the aligned one knows {AUTO}, "
            "default, kaiming, zero-output, joined with '+'"
        )
    return start


def check_vae(source: Source) -> None:
    """Raise for a source without the VAE that the maps are fitted with."""
    if not source.has_vae:
        raise ArchError(
            f"{source.directory} has no vae, which the aligned recipe is fitted with; add it, or use "
            'recipe = "paper"'
        )


def check_alignable(source: Source, head_channels: Sequence[int], images: Tensor | None) -> None:
    """Raise, in one line, for a source, head or call that cannot have the aligned recipe."""
    check_vae(source)
    if not head_channels:
        raise ArchError(
            "the aligned recipe needs a Detailer Head, and head_channels is empty; give some, or use "
            'recipe = "paper"'
        )
    if images is None:
        raise ArchError(
            "the aligned recipe needs calibration_images, (N, 3, H, W) in [-1, 1] (--images on the command "
            'line); give some, or use recipe = "paper"'
        )


def check_prediction(recipe: str, prediction: str) -> None:
    """Raise for a head that the recipe cannot have."""
    if prediction not in (AUTO, "velocity", "x_0"):
        raise ArchError(f"unknown prediction {prediction!r}; known: {AUTO}, velocity, x_0")
    if recipe == "aligned" and prediction == "velocity":
        raise ArchError(
            'prediction = "velocity" belongs to recipe = "paper", and the head of an aligned model answers '
            "the image; leave it out"
        )


def recipe_config(recipe: str, decoder: str, prediction: str = AUTO, reading: str = AUTO) -> dict[str, Any]:
    """Return what a recipe writes into the model's config, for `L2PTransformer`; nothing for the paper's
    own.
    """
    if recipe == "paper":
        return {"prediction": "x_0"} if prediction == "x_0" else {}
    sizes, version = dict(DECODERS[resolve_decoder(decoder)].sizes), ALIGNMENT_VERSION
    if directions := READINGS[resolve_reading(reading)]:
        sizes["reading"], version = directions, READING_VERSION
    return {"prediction": "x_0", "alignment": {"version": version, "polish": POLISH, **sizes}}


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


def enlarged_config(
    old: Mapping[str, Any],
    patch_size: int,
    factor: int,
    head_channels: Sequence[int] | None,
    head_bottleneck: int | None,
    head_decoder_floor: int,
) -> dict[str, Any]:
    """Return the config of an aligned model with a larger patch (`l2p_arch.enlargement`).

    Args:
        old: config of the model with the smaller patch.
        patch_size: of the new model, `factor` times the old one's.
        factor: 2 or more.
        head_channels: of the new model, those of the old one last; None: its finest width, halved for each
            finer level, 8 at least.
        head_bottleneck, head_decoder_floor: as given; only the old model's own can be had.
    """
    from l2p_arch.enlargement import DETAIL

    kept, levels = list(old["head_channels"]), factor.bit_length() - 1
    wanted = list(head_channels or [max(kept[0] >> level, 8) for level in range(levels, 0, -1)] + kept)
    if len(wanted) != levels + len(kept) or wanted[levels:] != kept:
        raise ArchError(
            f"head_channels {tuple(wanted)} do not suit: an aligned model keeps its head {tuple(kept)}, and "
            f"{factor} times its patch has {levels} finer level{'s' if levels > 1 else ''} before it; give "
            f"{levels} width{'s' if levels > 1 else ''} and then the model's own"
        )
    for name, asked in (("head_bottleneck", head_bottleneck), ("head_decoder_floor", head_decoder_floor)):
        if asked and asked != (old.get(name) or (kept[-1] if name == "head_bottleneck" else 0)):
            raise ArchError(f"{name} {asked} is not the aligned model's own, which stays; leave it out")
    polish = old["alignment"].get("polish", 0.0)
    alignment = {
        **old["alignment"],
        "version": max(ENLARGED_VERSION, old["alignment"]["version"]),
        "enlargement": factor,
        "detail": DETAIL,
        # The same of the small model's noise: sigma / (1 - sigma) grows with the factor.
        "polish": factor * polish / (factor * polish + 1 - polish),
    }
    own = {key: value for key, value in old.items() if not key.startswith("_")}
    return {**own, "patch_size": patch_size, "head_channels": wanted, "alignment": alignment}

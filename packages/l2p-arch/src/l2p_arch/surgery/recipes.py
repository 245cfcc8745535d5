"""The recipes of the surgery: their names, what each can have, and what it writes into a model's config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from l2p_arch.errors import ArchError
from l2p_arch.polish import configured_polish, enlarged_sigma, grain_sigmas, polish_sigmas

if TYPE_CHECKING:
    from torch import Tensor

    from l2p_arch.surgery.source import Source

RECIPES = ("paper", "aligned")
AUTO = "auto"
ALIGNMENT_VERSION = 1
ENLARGED_VERSION = 2
READING_VERSION = 3
POLISH_VERSION = 4
"""Of an alignment whose image is polished more than once."""
READINGS = {"subspace": 0, "wiener": 128}
"""What the trunk reads of pixels, by the directions in which it is corrected: the subspace alone, or the best
linear estimate of the source's z_t (`l2p_arch.alignment`). On the miniature 128 directions explain
0.69 of the latents of other images, and 384 explain 0.70."""
POLISH = (0.2, 0.02)
"""What "auto" stands for: the pass that a model is trained for (`polish_share` of l2p-train), and one that
takes what it leaves. More passes, from higher sigmas down, are better still for the miniature's flat shapes
(docs/notes/miniature.md); what they do to the texture of photographs has not been seen."""


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
    return _resolved("decoder", name, DECODERS, "closed-form")


def resolve_reading(name: str) -> str:
    """Return what "auto" stands for, or an ArchError for a name that is no reading."""
    return _resolved("reading", name, READINGS, "wiener")


def _resolved(what: str, name: str, known: Mapping[str, Any], usual: str) -> str:
    if name != AUTO and name not in known:
        raise ArchError(f"unknown {what} {name!r}; known: {AUTO}, {', '.join(known)}")
    return usual if name == AUTO else name


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


def resolve_polish(polish: Any) -> tuple[float, ...]:
    """Return the sigmas that "auto", a number or a sequence of numbers stands for, or an ArchError."""
    return POLISH if isinstance(polish, str) and polish == AUTO else polish_sigmas(polish)


def recipe_config(
    recipe: str,
    decoder: str,
    prediction: str = AUTO,
    reading: str = AUTO,
    polish: float | Sequence[float] | str = AUTO,
) -> dict[str, Any]:
    """Return what a recipe writes into the model's config, for `L2PTransformer`; nothing for the paper's
    own.
    """
    if recipe == "paper":
        return {"prediction": "x_0"} if prediction == "x_0" else {}
    sizes, version = dict(DECODERS[resolve_decoder(decoder)].sizes), ALIGNMENT_VERSION
    if directions := READINGS[resolve_reading(reading)]:
        sizes["reading"], version = directions, READING_VERSION
    passes = {"version": max(version, POLISH_VERSION), "polish": list(resolve_polish(polish))}
    return {"prediction": "x_0", "alignment": {**passes, **sizes}}


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
    polish = [enlarged_sigma(sigma, factor) for sigma in grain_sigmas(configured_polish(old))]
    alignment = {
        **old["alignment"],
        "version": max(ENLARGED_VERSION, old["alignment"]["version"]),
        "enlargement": factor,
        "detail": DETAIL,
        # Passes that draw the picture again are left out: they would take off what the new head adds.
        "polish": polish if len(polish) > 1 else sum(polish),
    }
    own = {key: value for key, value in old.items() if not key.startswith("_")}
    return {**own, "patch_size": patch_size, "head_channels": wanted, "alignment": alignment}

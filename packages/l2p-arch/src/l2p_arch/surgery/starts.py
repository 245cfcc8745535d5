"""First values of the new ends: the pixel embedder and the head.

The choices can be joined with "+", for example "fitted+zero-output"; their order in the name does not matter.
Surgery checks a choice before torch is imported, so no function here imports it before it needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from l2p_arch.arguments import check_seed
from l2p_arch.errors import ArchError

if TYPE_CHECKING:
    from torch import Tensor

    from l2p_arch.model import L2PTransformer
    from l2p_arch.surgery.source import Source

NewTensors = dict[str, "Tensor"]
Initialisation = Callable[[NewTensors, "L2PTransformer", "Source", "Tensor | None"], dict[str, float]]

_FINEST_CHANNELS = {"kaiming": 1, "detail": 6, "gated": 12}
"""The starts that write into the Detailer Head, and how many channels they need at its finest level."""


AUTO = "auto"
STARTS_WITH_IMAGES = ("fitted+kaiming+gated", "fitted+kaiming+detail", "fitted+kaiming", "fitted")
"""What "auto" stands for where there are calibration images and a VAE: the first that suits the head."""
STARTS_WITHOUT_IMAGES = ("kaiming+detail", "kaiming", "default")
"""What "auto" stands for elsewhere. Which start comes first in each was measured by training: PAPER.md,
"Ablations"."""


def resolve_initialisation(
    initialisation: str,
    head_channels: Sequence[int],
    calibration_images: Tensor | None = None,
    *,
    has_vae: bool = False,
    prediction: str = "velocity",
) -> str:
    """Return what "auto" stands for; any other initialisation is returned as it is.

    Args:
        initialisation: "auto", or keys of `INITIALISATIONS`, joined with "+".
        head_channels: of the model; empty for a plain linear head.
        calibration_images: (N, 3, H, W) in [-1, 1]; only whether there are any is looked at.
        has_vae: whether the source brings the VAE that the fits measure.
        prediction: what the head answers; "gated" filters a velocity.
    """
    if initialisation != AUTO:
        return initialisation
    starts: tuple[str, ...] = STARTS_WITH_IMAGES
    if calibration_images is None or not has_vae:
        starts = STARTS_WITHOUT_IMAGES
    finest = head_channels[0] if head_channels else 0
    if prediction == "x_0":
        starts = tuple(start for start in starts if "gated" not in start)
    return next(start for start in starts if _channels_needed(start) <= finest)


def measures_source(initialisation: str) -> bool:
    """Return whether a start needs calibration images and the source's own weights. "auto" needs neither."""
    return any(name.startswith(("fitted", "gated")) for name in initialisation.split("+"))


def _channels_needed(start: str) -> int:
    return max(_FINEST_CHANNELS.get(name, 0) for name in start.split("+"))


def check_initialisation(
    initialisation: str,
    calibration_images: Tensor | None,
    head_channels: Sequence[int] | None = None,
    prediction: str = "velocity",
) -> None:
    """Raise unless every joined name is known and has what it needs.

    Args:
        initialisation: "auto", which always suits, or keys of `INITIALISATIONS`, joined with "+".
        calibration_images: (N, 3, H, W) in [-1, 1]; only whether there are any is looked at.
        head_channels: of the model; None leaves the question open whether its head suits.
        prediction: what the head answers.
    """
    if initialisation == AUTO:
        return
    for name in initialisation.split("+"):
        if name not in INITIALISATIONS:
            raise ArchError(
                f"unknown initialisation {name!r}; known: {AUTO}, or joined with '+': "
                f"{', '.join(INITIALISATIONS)}"
            )
        if name == "gated" and prediction == "x_0":
            raise ArchError(
                'initialisation "gated" filters a velocity, and prediction = "x_0" answers an image; use '
                '"detail", or prediction = "velocity"'
            )
        if measures_source(name) and calibration_images is None:
            raise ArchError(f"initialisation {name!r} needs calibration_images, (N, 3, H, W) in [-1, 1]")
        if head_channels is None or name not in _FINEST_CHANNELS:
            continue
        if not head_channels:
            others = ", ".join(name for name in INITIALISATIONS if name not in _FINEST_CHANNELS)
            raise ArchError(
                f"initialisation {name!r} is of the Detailer Head, and this head is a plain linear one "
                f"(head_channels is empty); use {others}"
            )
        if head_channels[0] < _FINEST_CHANNELS[name]:
            raise ArchError(
                f"initialisation {name!r} needs at least {_FINEST_CHANNELS[name]} channels at the head's "
                f"finest level; head_channels[0] is {head_channels[0]}"
            )


def new_tensors(
    initialisation: str,
    model: L2PTransformer,
    source: Source,
    calibration_images: Tensor | None,
    *,
    seed: int,
) -> tuple[NewTensors, dict[str, float]]:
    """Return the values of all new tensors by their names in `model` (which may lie on the meta device), and
    measures."""
    made = pytorch_values(model, seed)
    measures: dict[str, float] = {}
    asked = initialisation.split("+")
    for name, apply in INITIALISATIONS.items():
        if name in asked:
            measures |= apply(made, model, source, calibration_images)
    return made, measures


def pytorch_values(model: L2PTransformer, seed: int) -> NewTensors:
    """Return the pixel embedder and the head in PyTorch's own initialisation, as the public conversion has
    it.
    """
    import torch
    from torch import nn

    check_seed(seed)
    made = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for prefix in model.new_names():
            module = model.get_submodule(prefix).to_empty(device="cpu")
            for layer in module.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.reset_parameters()
            made.update({f"{prefix}.{name}": value for name, value in module.state_dict().items()})
    return made


def _keep(made: NewTensors, model: L2PTransformer, source: Source, images: Tensor | None) -> dict[str, float]:
    """Leave PyTorch's values as they are."""
    return {}


def _zero_output(
    made: NewTensors, model: L2PTransformer, source: Source | None, images: Tensor | None
) -> dict[str, float]:
    """Start from a velocity of exactly zero: no random field to unlearn."""
    for kind in ("weight", "bias"):
        made[f"detailer_head.{model.detailer_head.output_layer}.{kind}"].zero_()
    return {}


def _kaiming(
    made: NewTensors, model: L2PTransformer, source: Source | None, images: Tensor | None
) -> dict[str, float]:
    """Start with a head that keeps its signal's size (He et al. 2015).

    PyTorch's own values have a standard deviation of 1 / sqrt(3 fan_in), which loses a factor of about 2 per
    convolution. The head has no norms: of the miniature's features, of size 3, the decoder's levels 3 to 1
    get 0.02 to 0.09, where the trained head has 1 to 6. Here it is sqrt(2 / fan_in), and 1 / sqrt(fan_in)
    for the convolutions without a SiLU behind them.
    """
    for name, value in made.items():
        if name.startswith("detailer_head.") and name.endswith(".bias"):
            value.zero_()
        elif name.startswith("detailer_head."):
            value.mul_(3**0.5 if ".up" in name or ".out_conv" in name else 6**0.5)
    return {}


def _detail(
    made: NewTensors, model: L2PTransformer, source: Source | None, images: Tensor | None
) -> dict[str, float]:
    """Start from velocity = x_t minus its 3x3 mean, carried through the finest level as silu(x) - silu(-x) =
    x.

    Smooth images have next to no such fine detail, so in x_t it is noise, which the velocity contains whole:
    the head need not learn first of all to let it pass. A head that answers the image starts from the mean.
    """
    import torch

    answers_image = model.config["prediction"] == "x_0"
    sign = 1 if answers_image else model.source_family.velocity_sign
    encoder, decoder, out = (f"detailer_head.{name}" for name in ("enc1.0", "dec1.0", "out_conv"))
    # Where the skip's channels begin.
    skip = made[f"{decoder}.weight"].shape[1] - made[f"{encoder}.weight"].shape[0]
    for layer in (encoder, decoder):
        made[f"{layer}.weight"][:6] = 0
        made[f"{layer}.bias"][:6] = 0
    made[f"{out}.weight"].zero_()
    made[f"{out}.bias"].zero_()
    fine = torch.full((3, 3), 1 / 9)
    if not answers_image:
        fine = -fine
        fine[1, 1] += 1
    for channel in range(3):
        for first, own in ((0, 1.0), (3, -1.0)):  # channels 0-2 carry the detail, 3-5 its negative
            made[f"{encoder}.weight"][first + channel, channel] = own * fine
            made[f"{decoder}.weight"][first + channel, skip + channel, 1, 1] = own
            made[f"{decoder}.weight"][first + channel, skip + 3 + channel, 1, 1] = -own
            made[f"{out}.weight"][channel, first + channel] = own * sign
    return {}


def _gated(
    made: NewTensors, model: L2PTransformer, source: Source, images: Tensor | None
) -> dict[str, float]:
    """Start from linear filters of x_t whose gain follows sigma; runs the source's blocks once."""
    from l2p_arch.surgery.gated_filters import set_gated_filters

    assert images is not None
    return set_gated_filters(made, model, source, images)


def _fitted(
    made: NewTensors, model: L2PTransformer, source: Source, images: Tensor | None
) -> dict[str, float]:
    """Embed clean pixels as the source embeds their latents; pixel noise mostly averages out."""
    return _fit_embedder(made, model, source, images, match_noise=False)


def _fitted_noise(
    made: NewTensors, model: L2PTransformer, source: Source, images: Tensor | None
) -> dict[str, float]:
    """As "fitted", and filled up to as much noise as the source's latents have at the same sigma."""
    return _fit_embedder(made, model, source, images, match_noise=True)


def _fit_embedder(
    made: NewTensors, model: L2PTransformer, source: Source, images: Tensor | None, *, match_noise: bool
) -> dict[str, float]:
    from l2p_arch.surgery.calibration import fit_patches_to_latents, paired_tokens

    assert images is not None
    layout = source.family.latent_embedder(source.transformer_config)
    pairs = paired_tokens(source, layout, images, model.patch_size)
    fit = fit_patches_to_latents(pairs, match_noise=match_noise)
    weight = source.tensors[f"{layout.name}.weight"].read().double().flatten(1)
    embedder = f"trunk.{model.source_family.embedder}"
    shape = made[f"{embedder}.weight"].shape
    made[f"{embedder}.weight"] = (weight @ fit.matrix).float().reshape(shape)
    if f"{embedder}.bias" in made:
        bias = source.tensors[f"{layout.name}.bias"].read().double()
        made[f"{embedder}.bias"] = (bias + weight @ fit.offset).float()
    return {"latent_variance_explained": fit.explained, "noise_gain": fit.noise_gain}


INITIALISATIONS: dict[str, Initialisation] = {
    "default": _keep,
    "fitted": _fitted,
    "fitted-noise": _fitted_noise,
    "kaiming": _kaiming,
    "detail": _detail,
    "gated": _gated,
    "zero-output": _zero_output,
}
"""In the order in which joined ones apply: a later one reads or overwrites what an earlier one wrote."""

SOURCELESS: dict[str, Callable[[NewTensors, L2PTransformer, None, None], dict[str, float]]] = {
    "kaiming": _kaiming,
    "detail": _detail,
    "zero-output": _zero_output,
}
"""Those that look at no source, in the same order."""

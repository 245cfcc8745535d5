"""A start of the Detailer Head from closed forms: linear filters of x_t whose gain follows sigma.

What is left of an image's velocity once sigma is known is largely local: v = (x_t - x_0) / sigma. On the
miniature the best linear 5x5 filter that knows sigma and couples the colours leaves 0.2 of eq. 5 at sigma
0.1, where the same filter without sigma leaves 0.78. The head is not told sigma; it must read it off the
trunk's features and multiply by it. Both are written into its weights here:

    velocity = W_0 x_t + sum_k G_k(sigma) W_k x_t,     G_k = 1 for sigma << sigma_k and 0 for sigma >> sigma_k

A pair of channels is a gate: silu(u + b) - silu(-u + b) is 2u where b is large and 0 where it is far below
zero. b_k(sigma) = 4 (1 - sigma / sigma_k) is a ridge regression on the features, made in the bottleneck and
carried up to the finest level in pairs, silu(x) - silu(-x) = x. The W_k are least squares over calibration
images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from l2p_arch.errors import ArchError, reason
from l2p_arch.files.mapping import unmapped
from l2p_arch.files.tensor_files import variant
from l2p_arch.patchify import pixels_to_patches

if TYPE_CHECKING:
    from l2p_arch.model import L2PTransformer
    from l2p_arch.surgery.source import Source

_SIGMAS = tuple(0.01 + 0.99 * ((step + 0.5) / 20) ** 1.7 for step in range(20))  # denser near the image
_THRESHOLDS = {1: (0.25,), 2: (0.12, 0.35), 3: (0.07, 0.18, 0.4)}
_LEAST, _MOST = -25.0, 4.0  # range of b: closed even for the largest x_t, and open
_PROMPTS = ("", "a photograph of a landscape", "two red shapes on a gray background")
_SIDE = 256  # px of the crops that are read


def set_gated_filters(
    made: dict[str, Tensor], model: L2PTransformer, source: Source, images: Tensor
) -> dict[str, float]:
    """Write the start into `made`, in place; return how well features tell sigma and what the filters
    leave."""
    widths = [*model.config["head_channels"], made["detailer_head.bottleneck.0.bias"].shape[0]]
    if min(widths) < 2:
        raise ArchError("initialisation 'gated' needs at least 2 channels at every level of the head")
    # 6 channels at the finest level per group of filters (4 stay free where there are 16), 2 above per gate.
    gates = max(1, min(3, (widths[0] - 4) // 6 - 1, min(widths) // 2))
    thresholds = _THRESHOLDS[gates]
    images = images[:64, :, :_SIDE, :_SIDE].float()
    images = images[..., : images.shape[-2] // model.patch_size * model.patch_size, :]
    images = images[..., : images.shape[-1] // model.patch_size * model.patch_size]
    filters, left = _fit_filters(images, thresholds)
    readout, told = _fit_readout(made, model, source, images, thresholds)
    _write_finest_level(made, filters, len(thresholds), model.source_family.velocity_sign)
    _write_readout(made, readout, len(model.config["head_channels"]))
    return {"sigma_told_by_features": told, "velocity_left_by_filters": left}


def openings(sigma: float, thresholds: Sequence[float]) -> Tensor:
    """Return b_k of every gate at sigma, (K,)."""
    return torch.tensor([4 * (1 - sigma / threshold) for threshold in thresholds]).clamp(_LEAST, _MOST)


def basis(x_t: Tensor) -> Tensor:
    """Fine detail and 3x3 mean of x_t (B, 3, H, W), which dec1 sees as differences of pairs: (B, 6, H, W)."""
    mean = F.avg_pool2d(x_t, 3, stride=1, padding=1)
    return torch.cat((x_t - mean, mean), dim=1)


def _noisy(images: Tensor, count: int) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Sigma, x_t and velocity of some of the images, for every sigma of the fit."""
    generator = torch.Generator().manual_seed(0)
    for step, sigma in enumerate(_SIGMAS):
        x_0 = images[(torch.arange(count) + step * count) % len(images)]
        noise = torch.randn(x_0.shape, generator=generator)
        yield sigma, (1 - sigma) * x_0 + sigma * noise, noise - x_0


def _fit_filters(images: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, float]:
    """Return least-squares filters (K + 1, 3, 6, 3, 3), ungated first, and the share of the velocity they
    leave.
    """
    groups = len(thresholds) + 1
    gram = torch.zeros(groups * 54, groups * 54, dtype=torch.float64)
    moment, energy, count = torch.zeros(groups * 54, 3, dtype=torch.float64), 0.0, 0
    generator = torch.Generator().manual_seed(1)
    for sigma, x_t, velocity in _noisy(images, min(24, len(images))):
        rows = rearrange(F.unfold(basis(x_t), 3, padding=1), "b c n -> (b n) c")
        wanted = rearrange(velocity, "b c h w -> (b h w) c")
        chosen = torch.randint(len(rows), (20_000,), generator=generator)
        rows, wanted = rows[chosen], wanted[chosen].double()
        gains = torch.cat((torch.ones(1), _slope(openings(sigma, thresholds)))).double()
        part, cross = (rows.T @ rows).double(), rows.T.double() @ wanted
        gram += torch.kron(torch.outer(gains, gains), part)
        moment += torch.kron(gains[:, None], cross)
        energy, count = energy + float(wanted.square().sum()), count + wanted.numel()
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solved = torch.linalg.solve(gram + ridge, moment)
    left = (energy - float((moment * solved).sum())) / energy
    return rearrange(solved, "(k i y x) o -> k o i y x", k=groups, i=6, y=3, x=3).float(), left


def _slope(openings: Tensor) -> Tensor:
    """Return half of what a gate multiplies small values by: the derivative of silu."""
    gate = torch.sigmoid(openings)
    return gate * (1 + openings * (1 - gate))


def _fit_readout(
    made: dict[str, Tensor],
    model: L2PTransformer,
    source: Source,
    images: Tensor,
    thresholds: Sequence[float],
) -> tuple[Tensor, float]:
    """Ridge regression of the gates' openings on the trunk's features, (K, D + 1), and its R^2."""
    runnable, conditioning = _runnable(made, model, source)
    family = model.source_family
    # Sums over tokens, float64: the features themselves would fill gigabytes at full size.
    rows, gates = family.feature_channels(model.config["trunk_config"]) + 1, len(thresholds)
    gram, moment = torch.zeros(rows, rows).double(), torch.zeros(rows, gates).double()
    total, squares, count = torch.zeros(gates).double(), 0.0, 0
    with torch.no_grad():
        for step, (sigma, x_t, _) in enumerate(_noisy(images, min(8, len(images)))):
            patches = pixels_to_patches(x_t, model.patch_size)
            texts = [conditioning[(step + n) % len(conditioning)] for n in range(len(x_t))]
            features = family.run(runnable.trunk, patches, torch.full((len(x_t),), sigma), texts)
            tokens = F.pad(rearrange(features, "b d h w -> (b h w) d").double(), (0, 1), value=1.0)
            wanted = openings(sigma, thresholds).double()
            gram += tokens.T @ tokens
            moment += torch.outer(tokens.sum(0), wanted)
            total += len(tokens) * wanted
            squares += len(tokens) * float(wanted.square().sum())
            count += len(tokens)
    scale = gram.diagonal() + 1e-12
    solved = torch.linalg.solve(gram + 1e-4 * torch.diag(scale), moment)
    spread = squares - float(total.square().sum()) / count
    left = squares + float((solved * (gram @ solved - 2 * moment)).sum())
    return solved.T.float(), 1 - left / spread


def _runnable(made: dict[str, Tensor], model: L2PTransformer, source: Source) -> tuple[Any, list[Any]]:
    """Return the model with the source's blocks and the new embedder in memory, and a few encoded texts."""
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    runnable = type(model).from_config(dict(model.config)).eval()
    embedder = f"{model.source_family.embedder}."
    state = {name: made[f"trunk.{name}"] for name in runnable.trunk.state_dict() if name.startswith(embedder)}
    state |= {
        name: source.tensors[name].read()
        for name in runnable.trunk.state_dict()
        if not name.startswith(embedder)
    }
    runnable.trunk.load_state_dict(state)
    kept = {name: None for name in ("transformer", "vae")}
    found = variant(source.directory / "transformer")
    options: dict[str, Any] = {**kept, "local_files_only": True, "use_safetensors": True, "variant": found}
    try:
        options |= unmapped(source.directory)
        pipeline = DiffusionPipeline.from_pretrained(source.directory, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ArchError(
            f"the text encoder of {source.directory} cannot be loaded ({reason(error)}); it must hold "
            "safetensors, for pickles and code of a model are never loaded"
        ) from error
    texts = {name: getattr(pipeline, name, None) for name in model.source_family.text_components}
    with torch.no_grad():
        conditioning = model.source_family.encode_text(
            {**texts, "trunk": runnable.trunk}, _PROMPTS, device=torch.device("cpu"), max_sequence_length=64
        )
    return runnable, conditioning


def _write_finest_level(made: dict[str, Tensor], filters: Tensor, gates: int, sign: int) -> None:
    """enc1 makes the basis in pairs, dec1 filters and gates it, out_conv adds the groups up."""
    encoder, decoder, out = (f"detailer_head.{name}" for name in ("enc1.0", "dec1.0", "out_conv"))
    skip = made[f"{decoder}.weight"].shape[1] - made[f"{encoder}.weight"].shape[0]
    mean = torch.full((3, 3), 1 / 9)
    detail = -mean
    detail[1, 1] += 1
    made[f"{encoder}.weight"][:12] = 0
    made[f"{encoder}.bias"][:12] = 0
    for colour in range(3):
        for channel, kernel in ((colour, detail), (3 + colour, mean)):
            made[f"{encoder}.weight"][channel, colour] = kernel
            made[f"{encoder}.weight"][6 + channel, colour] = -kernel
    rows = 6 * (gates + 1)
    weight, bias = made[f"{decoder}.weight"], made[f"{decoder}.bias"]
    weight[:rows], bias[:rows] = 0, 0
    made[f"{out}.weight"].zero_()
    made[f"{out}.bias"].zero_()
    for group, filter_ in enumerate(filters):
        for colour in range(3):
            for half, own in ((0, 1.0), (3, -1.0)):
                row = 6 * group + half + colour
                weight[row, skip : skip + 6] = own * filter_[colour]
                weight[row, skip + 6 : skip + 12] = -own * filter_[colour]
                if (
                    group
                ):  # both halves of a gate get the same opening, a pair carried up to channels 2k, 2k+1
                    weight[row, 2 * group - 2, 1, 1] = 1
                    weight[row, 2 * group - 1, 1, 1] = -1
                # silu(u + b) - silu(-u + b) is 2 G u; without a gate it is u
                made[f"{out}.weight"][colour, row] = own * sign * (0.5 if group else 1.0)


def _write_readout(made: dict[str, Tensor], readout: Tensor, levels: int) -> None:
    """Let the bottleneck read the openings as pairs, and every level above hand the pairs on unchanged."""
    name = "detailer_head.bottleneck.0"
    features = readout.shape[1] - 1
    for gate, row in enumerate(readout):
        for half, own in ((0, 1.0), (1, -1.0)):
            channel = 2 * gate + half
            made[f"{name}.weight"][channel] = 0
            made[f"{name}.weight"][channel, -features:, 0, 0] = own * row[:-1]
            made[f"{name}.bias"][channel] = own * row[-1]
            for level in range(levels, 0, -1):
                up = f"detailer_head.up{level}.1"
                made[f"{up}.weight"][channel], made[f"{up}.bias"][channel] = 0, 0
                made[f"{up}.weight"][channel, channel, 1, 1] = 1
                if level > 1:
                    down = f"detailer_head.dec{level}.0"
                    made[f"{down}.weight"][channel], made[f"{down}.bias"][channel] = 0, 0
                    made[f"{down}.weight"][channel, 2 * gate, 1, 1] = own
                    made[f"{down}.weight"][channel, 2 * gate + 1, 1, 1] = -own

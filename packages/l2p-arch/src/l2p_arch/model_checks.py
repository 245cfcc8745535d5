"""What `L2PTransformer` refuses, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2p_arch.errors import ArchError
from l2p_arch.families.base import CONDITIONING_DIMENSIONS, TEXT_WIDTHS
from l2p_arch.polish import polish_sigmas


def check_prediction(prediction: str, alignment: Mapping[str, Any] | None, head: Sequence[int]) -> None:
    """Raise `ArchError` for what a head cannot predict, and for an alignment of another version."""
    if prediction not in ("velocity", "x_0"):
        raise ArchError(f"prediction {prediction!r} is not one of velocity, x_0")
    if alignment is None:
        return
    if alignment.get("version") not in (1, 2, 3, 4):
        raise ArchError(
            f"this model's alignment has the version {alignment.get('version')!r}, and this l2p-arch knows "
            "1 to 4; use the l2p-arch that wrote it"
        )
    polish_sigmas(alignment.get("polish", 0.0), "alignment.polish")
    if prediction != "x_0":
        raise ArchError("an aligned model predicts x_0; the velocity is the paper's recipe")
    if not head:
        raise ArchError(
            "the aligned recipe needs a Detailer Head, and head_channels is empty; use the paper's recipe"
        )


def check_inputs(
    pixels: Tensor, sigma: Tensor, conditioning: Sequence[Mapping[str, Tensor]], config: Mapping[str, Any]
) -> None:
    """Raise `ArchError` for arguments of `L2PTransformer.forward` that do not fit each other, or the trunk's
    config.
    """
    if not (isinstance(pixels, Tensor) and isinstance(sigma, Tensor)):
        raise ArchError(
            f"pixels are {type(pixels).__name__} and sigma is {type(sigma).__name__}; wanted tensors "
            "(B, 3, H, W) and (B,)"
        )
    if isinstance(conditioning, Mapping | Tensor) or not all(isinstance(e, Mapping) for e in conditioning):
        raise ArchError(
            f"conditioning is {type(conditioning).__name__}; wanted a list of one mapping per sample, as "
            "L2PPipeline.encode returns"
        )
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ArchError(f"pixels have the shape {tuple(pixels.shape)}; wanted (B, 3, H, W)")
    if sigma.shape != pixels.shape[:1] or len(conditioning) != pixels.shape[0]:
        raise ArchError(
            f"{pixels.shape[0]} images need as many sigmas and conditionings; "
            f"sigma has the shape {tuple(sigma.shape)}, and there are {len(conditioning)} conditionings"
        )
    if sigma.dtype not in (torch.float32, torch.float64):
        raise ArchError(f"sigma is {sigma.dtype}, which rounds the time by up to 0.4 %; pass it as float32")
    for index, sample in enumerate(conditioning):
        for key, value in sample.items():
            if value.ndim != CONDITIONING_DIMENSIONS.get(key, value.ndim):
                raise ArchError(
                    f"conditioning {index}: {key} has the shape {tuple(value.shape)}; wanted "
                    f"{CONDITIONING_DIMENSIONS[key]} dimensions, for one sample has no batch dimension"
                )
            width = next((config[name] for name in TEXT_WIDTHS.get(key, ()) if config.get(name)), None)
            if width is not None and value.shape[-1] != width:
                raise ArchError(
                    f"conditioning {index}: {key} has the shape {tuple(value.shape)}, and this model reads "
                    f"embeddings of width {width}; encode its prompts with this model's own pipeline"
                )


def check_keys(missing: object, conditioning: Sequence[Mapping[str, Tensor]], family: str) -> None:
    """Raise `ArchError` if some sample lacks what the family asked it for."""
    for index, sample in enumerate(conditioning):
        if missing not in sample:
            raise ArchError(
                f"conditioning {index} has {', '.join(sample) or 'nothing'}, but {family} wants {missing!r}; "
                "encode its prompts with this model's own pipeline: L2PPipeline.encode"
            )

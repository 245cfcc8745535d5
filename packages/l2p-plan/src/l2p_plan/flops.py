"""FLOPs of one image in each part of a transfer, counted on meta tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from l2p_run.sizes import Size

from l2p_plan.transfer import Source, Transfer, largest

CAPTION_TOKENS = 256
SOURCE_PIXELS_PER_TOKEN = 16  # side: 8 px a latent and 2 latents a patch, as in every family listed here
NEARLY_NO_HEAD = (8, 8, 8, 8)  # channels; a thousandth of the trunk's FLOPs
TEXT_WIDTHS = ("cap_feat_dim", "joint_attention_dim", "caption_channels")


@dataclass(frozen=True, kw_only=True)
class ImageFlops:
    """FLOPs of one image, each at the largest size of its stage."""

    painted: float  # a forward of the source that paints the corpus
    trained: float  # forward and backward of the pixel model
    again: float  # what gradient checkpointing computes a second time
    source: float  # a forward of the source in the evaluation
    l2p: float  # a forward of the pixel model in the evaluation

    def in_tera(self) -> dict[str, float]:
        """Return what a reader can check."""
        parts = {"source": self.painted, "l2p": self.l2p, "step": self.trained}
        return {name: round(value / 1e12, 1) for name, value in parts.items()}


def passes(steps: int, guidance: float, family: str) -> int:
    """Forward passes per image: diffusers' Z-Image guides above 0, FLUX embeds its guidance, others guide
    above 1."""
    guided = guidance > (0 if family == "z-image" else 1) and family != "flux"
    return steps * (2 if guided else 1)


def count_images(
    transfer: Transfer, family: str, trunk: Mapping[str, Any], model: Path, plan: Any
) -> ImageFlops | None:
    """Count on meta tensors; None for a model that cannot run on them.

    Args:
        trunk: the source transformer's config.
        model: directory with the pixel model's transformer/config.json.
        plan: what trains (`l2p_train.freeze.FreezePlan`).
    """
    from l2p_train.flops import flops_or_none

    conditioning = conditioning_of(transfer.source, family, trunk)

    @cache
    def count(directory: Path, size: Size) -> Any:
        settings = replace(transfer.train, model=directory)
        return flops_or_none(settings, plan, size, conditioning)

    with TemporaryDirectory() as folder:
        latent = _source_as_counted(Path(folder), family, trunk)
        painted = count(latent, largest(transfer.corpus.sizes))
        source = count(latent, transfer.evaluation.source_size)
        trained = count(model, transfer.trained_size)
        l2p = count(model, transfer.evaluation.size)
    if not (painted and source and trained and l2p):
        return None
    return ImageFlops(
        painted=painted.forward,
        trained=trained.step,
        again=trained.forward if transfer.train.gradient_checkpointing else 0.0,
        source=source.forward,
        l2p=l2p.forward,
    )


def _source_as_counted(folder: Path, family: str, trunk: Mapping[str, Any]) -> Path:
    """Return a model directory whose forward has the source's tokens and no Detailer Head worth counting."""
    import torch
    from l2p_arch.model import L2PTransformer

    with torch.device("meta"):
        model = L2PTransformer(
            family=family,
            trunk_config=dict(trunk),
            patch_size=SOURCE_PIXELS_PER_TOKEN,
            head_channels=NEARLY_NO_HEAD,
        )
    model.save_config(folder / "transformer")
    return folder


def conditioning_of(source: Source, family: str, trunk: Mapping[str, Any]) -> dict[str, Any]:
    """Return a caption of the assumed length, by shape."""
    import torch
    from l2p_arch.families import find_family

    width = next((trunk[key] for key in TEXT_WIDTHS if trunk.get(key)), 0)
    tokens = find_family(family).caption_tokens(source.max_sequence_length, CAPTION_TOKENS)
    conditioning = {"caption" if family == "z-image" else "text": torch.empty(tokens, width, device="meta")}
    if trunk.get("pooled_projection_dim"):
        conditioning["pooled"] = torch.empty(trunk["pooled_projection_dim"], device="meta")
    return conditioning

"""A published source and its L2P models on the meta device: what a forward costs, without their weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from l2p_arch.errors import ArchError

FAMILIES = ("z-image",)
CAPTION_TOKENS = 128
HEADS: dict[int, dict[str, Any]] = {
    1024: {"patch_size": 16, "head_channels": (64, 128, 256, 512)},  # Table 3
    2048: {"patch_size": 32, "head_channels": (32, 64, 128, 256, 512)},  # ours, between the published ones
    4096: {"patch_size": 64, "head_channels": (16, 32, 64, 128, 256, 512)},
    8192: {"patch_size": 128, "head_channels": (3, 16, 32, 64, 128, 256, 512), "head_decoder_floor": 16},
}
"""Heads of the published models by image side: the token grid stays 64 x 64."""
Forward = tuple[Callable[[], Any], Any]
"""One forward, and the module whose weights it uses."""


def forwards_on_meta(family: str, size: int) -> dict[str, dict[str, Forward]]:
    """Return {"source": {"transformer", "decoder"}, "L2P": {"transformer"}} of one square image, bfloat16,
    batch 1.

    Args:
        size: px, a side of the image.

    Raises:
        ArchError: no such family, or no published head for this size.
    """
    import torch
    from diffusers import AutoencoderKL, ZImageTransformer2DModel

    from l2p_arch.families.published_pipelines import recipe
    from l2p_arch.model import L2PTransformer

    if family not in FAMILIES:
        raise ArchError(f"cannot count {family!r}; there is {', '.join(FAMILIES)}")
    if size not in HEADS:
        raise ArchError(f"no published head for {size} px; count {', '.join(map(str, HEADS))}")
    with torch.device("meta"), _default_dtype(torch.bfloat16):
        source = ZImageTransformer2DModel()
        decoder = AutoencoderKL(**recipe(family).components["vae"].config)
        trunk = {key: value for key, value in source.config.items() if not key.startswith("_")}
        l2p = L2PTransformer(family, trunk, **HEADS[size])
        latents = torch.empty(16, 1, size // 8, size // 8)
        pixels = torch.empty(1, 3, size, size)
        caption = torch.empty(CAPTION_TOKENS, trunk["cap_feat_dim"])
        time = torch.empty(1, dtype=torch.float32)
    return {
        "source": {
            "transformer": (lambda: source([latents], time, [caption], return_dict=False), source),
            "decoder": (lambda: decoder.decode(latents[None, :, 0]), decoder.decoder),
        },
        "L2P": {"transformer": (lambda: l2p(pixels, time, [{"caption": caption}]), l2p)},
    }


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """Make new tensors of a dtype within the block."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

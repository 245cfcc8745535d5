"""Small parts that several families' `run` and `encode_text` share."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from l2p_arch.errors import ArchError
from l2p_arch.families.base import Conditioning
from l2p_arch.guidance_input import told_scales

_PARTS = 4  # of 8 bits each, in bfloat16: more than float32's 24
Run = Callable[[Any, Tensor, Tensor, Sequence[Conditioning]], Tensor]


def in_groups_of_equal_text(run: Run) -> Run:
    """For transformers without a text mask: run samples of equal text length together, so that none is
    padded."""

    def run_groups(
        trunk: Any, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]
    ) -> Tensor:
        groups: dict[int, list[int]] = defaultdict(list)
        for index, sample in enumerate(conditioning):
            groups[len(sample["text"])].append(index)
        if len(groups) == 1:
            return run(trunk, patches, sigma, conditioning)
        order = [index for group in groups.values() for index in group]
        parts = []
        for group in groups.values():
            samples = [conditioning[index] for index in group]
            with told_scales(samples):
                parts.append(run(trunk, patches[group], sigma[group], samples))
        return torch.cat(parts)[torch.tensor(order, device=patches.device).argsort()]

    return run_groups


def stacked(conditioning: Sequence[Conditioning], key: str, like: Tensor) -> Tensor:
    """Return one entry of every sample as a batch, on the device and in the dtype of `like`."""
    return torch.stack([sample[key].to(like.device, like.dtype) for sample in conditioning])


def embedded_guidance(
    trunk: Any, conditioning: Sequence[Conditioning], default: float, sigma: Tensor
) -> Tensor | None:
    """Return what a guidance-distilled model embeds beside the time, (B,); None for others."""
    if not trunk.config.guidance_embeds:
        return None
    samples = [{"guidance": torch.tensor(default), **sample} for sample in conditioning]
    return stacked(samples, "guidance", sigma)


def padded(conditioning: Sequence[Conditioning], key: str, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return entries of unequal length as a batch padded with zeros (B, L, D), and its mask (B, L), None if
    all are full."""
    entries = [sample[key].to(like.device, like.dtype) for sample in conditioning]
    lengths = torch.tensor([len(entry) for entry in entries], device=like.device)
    batch = nn.utils.rnn.pad_sequence(entries, batch_first=True)
    if len({len(entry) for entry in entries}) == 1:
        return batch, None
    return batch, torch.arange(batch.shape[1], device=like.device) < lengths[:, None]


def to_tokens(patches: Tensor) -> Tensor:
    """Return patches (B, C, h, w) to tokens (B, h*w, C)."""
    return rearrange(patches, "b c h w -> b (h w) c")


def to_grid(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Return tokens (B, h*w, D) to features (B, D, h, w)."""
    return rearrange(tokens, "b (h w) d -> b d h w", h=grid[0], w=grid[1])


def exact_time(sigma: Tensor, factor: int, like: Tensor) -> Tensor:
    """Return the time in parts (B, 4) that survive a forward which rounds what it is given to the tokens'
    dtype and then multiplies it by `factor`: rounded and multiplied like that, they add up to sigma * factor.

    The first part is what would be passed anyway, each further one makes up for the rounding of those before.
    """
    dtype = like.dtype
    device = like.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # the tokens leave the embedder in it
        dtype = torch.get_autocast_dtype(device)
    wide = _widest(like)
    left = (sigma.float() * factor).to(wide)
    parts: list[Tensor] = []
    for _ in range(_PARTS):
        part = (sigma if not parts else left / factor).to(dtype)
        parts.append(part)
        left = left - (part * factor).to(wide)
    return torch.stack(parts, dim=1)


def hear_exact_time(time_proj: nn.Module) -> None:
    """Make a sinusoidal embedding add up the parts of `exact_time`, once and for all.

    What else a family embeds with the same module, such as its guidance, has no parts and passes untouched.
    """
    time_proj.register_forward_pre_hook(_add_up)


def _add_up(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    time: Tensor = args[0]
    if time.ndim < 2:
        return args
    return (time.to(_widest(time)).sum(dim=1).float(), *args[1:])


def _widest(like: Tensor) -> torch.dtype:
    return torch.float32 if like.device.type == "mps" else torch.float64


def source_pipeline(class_name: str, components: Mapping[str, Any]) -> Any:
    """Return the source's own diffusers pipeline, with nothing but its text components, to encode text with.

    Some pipelines read a width off the transformer's config: it may come along as "trunk".
    """
    import diffusers

    text = {name: component for name, component in components.items() if name != "trunk"}
    return getattr(diffusers, class_name)(
        scheduler=None, vae=None, transformer=components.get("trunk"), **text
    )


def check_grid(grid: Sequence[int], largest: int, family: str) -> None:
    """Raise for grids beyond a family's table of positions."""
    if max(grid) > largest:
        raise ArchError(
            f"a grid of {grid[0]} x {grid[1]} tokens exceeds {family}'s {largest}; use a larger patch"
        )

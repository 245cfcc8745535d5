"""Guidance as an input of the model: a number in the conditioning, in place of a second pass.

After Meng et al. 2023 (arXiv 2210.03142, sec. 3.1): the scale w of guidance is embedded as the time is, and
the two embeddings are added. Families that embed a guidance of their own (FLUX.1 [dev]) keep theirs; to the
others a small embedding is added, from outside of diffusers' class. Its last layer begins with zeros, so that
it changes nothing until it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from l2p_arch.errors import ArchError

KEY = "guidance"
"""Of a sample's conditioning: its scale of guidance, a tensor without dimensions."""
_WAVES = 16
_SLOWEST, _FASTEST = 1 / 16, 2.0  # radians per unit of w: between 1 and 10 every two scales differ clearly

_GAIN = 16.0  # without it a last layer of zeros hardly grows at the rates at which a finished model trains on

# Not an attribute of the model: threads that share one paint with different scales.
_SCALES: ContextVar[Tensor | None] = ContextVar("scales of guidance", default=None)


class GuidanceEmbedder(nn.Module):
    """w (B,) -> what is added to the time's embedding, (B, width); zero until it is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * _WAVES, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, scales: Tensor) -> Tensor:
        """Embed scales of guidance (B,), float32."""
        places = torch.linspace(math.log(_SLOWEST), math.log(_FASTEST), _WAVES, device=scales.device)
        angles = scales[:, None] * places.exp()
        waves = torch.cat((angles.sin(), angles.cos()), dim=1).to(self.hidden.weight.dtype)
        embedded: Tensor = _GAIN * self.out(nn.functional.silu(self.hidden(waves)))
        return embedded

    def add_to(self, _: nn.Module, __: tuple[Any, ...], time: Tensor) -> Tensor:
        """Forward hook of the module that embeds the time, whose answer is (B, width)."""
        scales = _SCALES.get()
        assert scales is not None, "L2PTransformer tells the scales before it runs the trunk"
        embedded: Tensor = self(scales.to(time.device))
        return time + embedded.to(time.dtype)


def add_embedder(trunk: Any, time_embedding: str) -> GuidanceEmbedder | None:
    """Let a trunk's time embedding hear the guidance; None where the trunk embeds a guidance of its own.

    Args:
        time_embedding: name of the trunk's module that embeds the time, see `Family.time_embedding`.
    """
    if embeds_its_own(trunk):
        return None
    module = trunk.get_submodule(time_embedding)
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    embedder = GuidanceEmbedder(last.out_features).to(last.weight.device, last.weight.dtype)
    module.register_forward_hook(embedder.add_to)
    return embedder


def embeds_its_own(trunk: Any) -> bool:
    """Return whether the source was distilled itself, and its trunk embeds the guidance."""
    return bool(trunk.config.get("guidance_embeds"))


@contextmanager
def told_scales(conditioning: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
    """Tell `GuidanceEmbedder` the scales of the samples that go through the trunk within the block.

    Args:
        conditioning: of each sample; samples without `KEY` belong to a model that embeds none.
    """
    if not all(KEY in sample for sample in conditioning):
        yield
        return
    scales = torch.stack([sample[KEY].to("cpu", torch.float32) for sample in conditioning])
    before = _SCALES.set(scales)
    try:
        yield
    finally:
        _SCALES.reset(before)


def completed(
    conditioning: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
) -> list[Mapping[str, Tensor]]:
    """Return the conditioning, with the lowest of the learned scales where a sample has none."""
    return [{KEY: torch.tensor(float(scales[0]), device="cpu"), **sample} for sample in conditioning]


def check_range(scales: Any, called: str = "guidance_range") -> tuple[float, float]:
    """Return the lowest and the highest scale.

    Raises:
        ArchError: they are not two finite numbers of at least 1, ascending.
    """
    numbers = list(scales) if isinstance(scales, list | tuple) else []
    right = len(numbers) == 2 and all(
        isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
        for each in numbers
    )
    if not (right and 1 <= numbers[0] < numbers[1]):
        raise ArchError(
            f"{called} is {str(scales)[:80]}; it must be two numbers, the lowest scale of guidance (at least "
            "1, which is none) and a higher one, such as 1 4"
        )
    return float(numbers[0]), float(numbers[1])

"""A trunk that keeps its source's last layer, and hands out the last block's tokens beside what it answers.

diffusers' forward is used as it is: a hook remembers the tokens that reach the final norm, and one behind the
final projection appends them to its channels. With a patch of one token the forward's own unpatchify moves no
channel, so that its answer has r + D channels in place of r.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Tokens:
    """Carries the last block's tokens past the final norm and projection, within one forward pass."""

    def __init__(self) -> None:
        self.seen: Tensor | None = None

    def remember(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen = args[0] if args else next(iter(kwargs.values()))

    def append(self, _: nn.Module, __: Any, projected: Tensor) -> Tensor:
        tokens, self.seen = self.seen, None
        assert tokens is not None
        return torch.cat((projected, tokens.to(projected.dtype)), dim=-1)


def keep_output(trunk: Any, norm: str, projection: str) -> None:
    """Let a trunk's forward return its projected answer and, behind it, the last block's tokens.

    Args:
        trunk: built with the patch of one token.
        norm, projection: names of its final norm and of what projects behind it; they may be one module.
    """
    tokens = _Tokens()
    trunk.get_submodule(norm).register_forward_pre_hook(tokens.remember, with_kwargs=True)
    trunk.get_submodule(projection).register_forward_hook(tokens.append)

"""FLOPs and peak memory of a forward pass on meta tensors: full-size models are counted without a GPU.

Counted, not timed: floating-point operations (a multiply-add is two) and the most bytes of activations alive
at once, weights apart. Attention counts as one fused operation, as every GPU kernel does it today: its scores
are never stored.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class FusedAttention(TorchFunctionMode):
    """Stands in for scaled_dot_product_attention: the right shape, 4 * q * k * d operations, no scores."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value")
        query, key, value = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
        pairs = query.shape[:-1].numel() * key.shape[-2]
        self.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])
        return query.new_empty((*query.shape[:-1], value.shape[-1]))


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors made inside that are alive at once; storages count once, however viewed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size

    def ignore(self, tensors: Any) -> None:
        """Weights and other tensors that were there before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(out):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.alive += size
                    weakref.finalize(storage, self._forget, key, size)
        self.peak = max(self.peak, self.alive)
        return out


def count(model: torch.nn.Module, run: Callable[[], Any]) -> tuple[float, int]:
    """(floating-point operations, peak bytes of activations) of `run`, which calls the model without
    gradients."""
    memory, attention = PeakBytes(), FusedAttention()
    memory.ignore([*model.parameters(), *model.buffers()])
    with torch.no_grad(), FlopCounterMode(display=False) as flops, memory, attention:
        run()
    return flops.get_total_flops() + attention.flops, memory.peak


def weight_bytes(*models: torch.nn.Module) -> int:
    """Bytes of the parameters."""
    return sum(value.numel() * value.element_size() for model in models for value in model.parameters())

"""The float32 masters behind DeepSpeed's ZeRO stages, as one uniform thing.

`Masters` is all that checkpoints, EMA and export know of ZeRO: this process's float32 shards of what trains,
and a way to read or write anything of that shape (masters, Adam moments, averages) by parameter name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Masters:
    """This process's float32 shards of what trains, and the Adam moments beside them.

    Whole tensors by name are reached through DeepSpeed's public accessors of the masters alone: to read or
    write anything else of the same shape, it takes the masters' place for a moment. All methods are
    collective.
    """

    def __init__(
        self, engine: Any, optimizer: torch.optim.Optimizer, named: Sequence[tuple[str, nn.Parameter]]
    ) -> None:
        self.engine, self.optimizer = engine, optimizer
        self.named = list(named)
        wrapper = engine.optimizer
        sharded = next(
            (
                getattr(wrapper, attribute)
                for attribute in (
                    "single_partition_of_fp32_groups",  # ZeRO 1 and 2
                    "fp32_partitioned_groups_flat",  # ZeRO 3
                    "fp32_groups_flat_partition",  # ZeRO 1 with bf16
                )
                if getattr(wrapper, attribute, None)
            ),
            None,
        )
        self.is_sharded = sharded is not None
        if sharded is not None:
            self.shards: list[Tensor] = list(sharded)
        elif hasattr(wrapper, "fp32_groups"):  # ZeRO 0 with bf16: a master per parameter
            self.shards = [master for group in wrapper.fp32_groups for master in group]
        else:  # ZeRO 0 with fp32: the parameters are their own masters
            self.shards = [parameter for _, parameter in self.named]
        if not self.is_sharded:
            self._use_channels_last()
        self.set_moments(None, None, step=0)

    def _use_channels_last(self) -> None:
        """Lay out convolution weights, masters and (by `zeros_like`) moments as the convolutions want them.

        Only whole tensors can be; DeepSpeed's set-up wants the usual layout, so it happens after.
        """
        for tensor in (*(parameter for _, parameter in self.named), *self.shards):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
            self.optimizer.state.pop(tensor, None)

    def moments(self, name: str) -> list[Tensor]:
        """Return the shards of an Adam moment, `exp_avg` or `exp_avg_sq`."""
        return [self.optimizer.state[shard][name] for shard in self.shards]

    def set_moments(self, first: Sequence[Tensor] | None, second: Sequence[Tensor] | None, step: int) -> None:
        """Set the Adam moments (None: zeros) and the step count that corrects their bias."""
        for index, shard in enumerate(self.shards):
            state = self.optimizer.state[shard]
            for name, values in (("exp_avg", first), ("exp_avg_sq", second)):
                if name not in state:
                    state[name] = torch.zeros_like(shard, requires_grad=False)
                if values is None:
                    state[name].zero_()
                else:
                    state[name].copy_(values[index])
            state["step"] = torch.tensor(float(step), dtype=torch.float32, device=shard.device)

    @torch.no_grad()
    def gather(self, values: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield (parameter name, whole float32 tensor) of shard-shaped `values`."""
        from deepspeed.utils import safe_get_full_fp32_param

        if not self.is_sharded:
            for (name, _), value in zip(self.named, values, strict=True):
                yield name, value.detach()
            return
        with self._in_place_of_masters(values):
            for name, parameter in self.named:
                yield name, safe_get_full_fp32_param(parameter).detach()

    @torch.no_grad()
    def scatter(self, values: Sequence[Tensor], whole: Callable[[str], Tensor]) -> None:
        """Fill shard-shaped `values` from whole tensors by parameter name."""
        from deepspeed.utils import safe_set_full_fp32_param

        if not self.is_sharded:
            for (name, _), value in zip(self.named, values, strict=True):
                value.copy_(whole(name))
            return
        with self._in_place_of_masters(values):
            for name, parameter in self.named:
                safe_set_full_fp32_param(parameter, whole(name).to(self.engine.device))
            for value, shard in zip(values, self.shards, strict=True):
                if value is not shard:
                    value.copy_(shard)

    @torch.no_grad()
    def write_to_model(self, values: Sequence[Tensor]) -> None:
        """Make the model compute with shard-shaped `values`, rounded to its dtype."""
        from deepspeed.runtime.zero import GatheredParameters

        parameters = dict(self.named)
        for name, tensor in self.gather(values):
            with GatheredParameters(
                [parameters[name]], modifier_rank=0, enabled=self.engine.zero_optimization_stage() == 3
            ):
                parameters[name].data.copy_(tensor)

    @contextmanager
    def model_uses(self, values: Sequence[Tensor] | None) -> Iterator[None]:
        """Let the model compute with `values` (None: no change) inside the block."""
        if values is None:
            yield
            return
        keep = [shard.detach().clone() for shard in self.shards]
        self.write_to_model(values)
        try:
            yield
        finally:
            self.write_to_model(keep)

    @contextmanager
    def _in_place_of_masters(self, values: Sequence[Tensor]) -> Iterator[None]:
        swap = [
            (shard, value) for shard, value in zip(self.shards, values, strict=True) if shard is not value
        ]
        keep = [shard.detach().clone() for shard, _ in swap]
        for shard, value in swap:
            shard.data.copy_(value)
        try:
            yield
        finally:
            for (shard, _), kept in zip(swap, keep, strict=True):
                shard.data.copy_(kept)

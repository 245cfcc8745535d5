"""DeepSpeed around the model, and the float32 masters behind its ZeRO stages as one uniform thing.

`Masters` is all that checkpoints, EMA and export know of ZeRO: this process's float32 shards of what trains,
and a way to read or write anything of that shape (masters, Adam moments, averages) by parameter name.
"""

from __future__ import annotations

import gc
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from l2p_train.config import TrainConfig
from l2p_train.freeze import FreezePlan


def start_distributed() -> tuple[int, int]:
    """Join the process group that the launcher announced (torchrun, deepspeed, Ray Train), or one of a
    single process.

    Returns:
        (rank, number of processes).
    """
    for name, alone in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
    ):
        os.environ.setdefault(name, alone)
    if "MASTER_PORT" not in os.environ:
        from l2p_train.launcher import free_port

        os.environ["MASTER_PORT"] = str(free_port())
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        # DeepSpeed would compile a shared-memory all-reduce with g++ and ninja; gloo does without a compiler.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        dist_init_required=not torch.distributed.is_initialized(),
        verbose=False,
    )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def deepspeed_config(config: TrainConfig, processes: int) -> dict[str, Any]:
    """Return DeepSpeed's settings; everything a user chooses is in `TrainConfig`."""
    micro, accumulation = config.batch_layout(processes)
    settings: dict[str, Any] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": torch.cuda.is_available()},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",  # DeepSpeed's default follows the weights: bf16 sums of gradients
        "steps_per_print": 2**31,
    }
    if config.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        if config.zero_stage > 0:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.offload_optimizer:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return settings


def build_engine(
    model: nn.Module, plan: FreezePlan, config: TrainConfig, processes: int
) -> tuple[Any, Masters]:
    """Freeze what the plan freezes and wrap the model; return DeepSpeed's engine and its masters."""
    import deepspeed

    trainable = dict.fromkeys(plan.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    named = [(name, parameter) for name, parameter in model.named_parameters() if name in trainable]
    groups = [
        [(name, parameter) for name, parameter in named if (name in plan.new_ends) == new]
        for new in (False, True)
    ]
    groups = [group for group in groups if group]
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [parameter for _, parameter in group],
                "multiplier": config.new_end_multiplier if group[0][0] in plan.new_ends else 1.0,
            }
            for group in groups
        ],
        lr=0.0,  # set before every step; some ZeRO stages allocate their state with an empty step
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    # DeepSpeed collects garbage and prints at every stage of its set-up; frozen objects make that quick.
    gc.freeze()
    with redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, processes),
            dist_init_required=False,
        )
    return engine, Masters(engine, optimizer, [pair for group in groups for pair in group])


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next step; the new ends have their multiple of it."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


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
        self.set_moments(None, None, step=0)

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

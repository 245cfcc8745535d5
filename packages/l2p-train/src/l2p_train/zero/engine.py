"""From a model directory to DeepSpeed's engine: process group, dtype, freezing, optimiser."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.freeze import FreezePlan
from l2p_train.lora import add_adapters
from l2p_train.machine.processes import free_port
from l2p_train.zero.fp32_masters import Masters
from l2p_train.zero.muon import Muon
from l2p_train.zero.partitioned import load_partitioned
from l2p_train.zero.settings import deepspeed_config
from l2p_train.zero.shared_memory import SharedMemory, share_memory

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""How long processes wait for each other. Process 0 exports, hashes and uploads 20 GB and more while the
others stand at a barrier; the libraries' 10 and 30 minutes would end the run there. DEEPSPEED_TIMEOUT, in
minutes, goes before it."""


@contextmanager
def distributed() -> Iterator[tuple[int, int]]:
    """Join the process group that the launcher announced (torchrun, deepspeed, Ray Train), or one of our own.

    Yields:
        (rank, number of processes). Environment variables set for a process on its own are taken back at the
        end: they would reach the processes that it starts later. So is what `_settings_of_the_process` names.
        The group stays for the next training of this process and is left when the process ends.
    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    alone["MASTER_PORT"] = str(free_port())
    if not torch.cuda.is_available():
        alone["DS_ACCELERATOR"] = "cpu"
    added = {name: value for name, value in alone.items() if name not in os.environ}
    os.environ.update(added)
    failed = True
    try:
        with _settings_of_the_process():
            _start_deepspeed()
            yield torch.distributed.get_rank(), torch.distributed.get_world_size()
        failed = False
    finally:
        atexit.unregister(_leave_group)
        # With NCCL, a process that failed would wait here for others that wait for it.
        if not (failed and torch.cuda.is_available()):
            atexit.register(_leave_group)
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _settings_of_the_process() -> Iterator[None]:
    """Give back at the end what a training changes for all that its process computes.

    ZeRO-3 puts a function of DeepSpeed's in the place of `torch.nn.functional.linear` and leaves it there; it
    rounds differently, so a model painted afterwards would not give the picture that another process gives.
    `compile = "auto"` lets every compilation fail in silence. `build_engine` hides objects from the garbage
    collector, the finished engine among them.
    """
    linear, frozen = torch.nn.functional.linear, gc.get_freeze_count()
    # It takes seconds to import, which a training without any compilation need not spend.
    suppressed = "torch._dynamo" in sys.modules and torch._dynamo.config.suppress_errors
    try:
        yield
    finally:
        torch.nn.functional.linear = linear
        if "torch._dynamo" in sys.modules:
            torch._dynamo.config.suppress_errors = suppressed
        if not frozen:
            gc.unfreeze()


def _start_deepspeed() -> None:
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        # DeepSpeed would compile a shared-memory all-reduce with g++ and ninja; gloo does without a compiler.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        dist_init_required=not torch.distributed.is_initialized(),
        verbose=False,
        **({} if "DEEPSPEED_TIMEOUT" in os.environ else {"timeout": COLLECTIVE_TIMEOUT}),
    )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _leave_group() -> None:
    """Leave the process group while the interpreter is still whole.

    A thread of gloo's may still hold a tensor of the last collective. Where it lets go of it after Python has
    begun to end, the process aborts ("terminate called without an active exception", exit code -6) although
    all its work is done.
    """
    import deepspeed

    if torch.distributed.is_initialized():
        deepspeed.comm.destroy_process_group()


def local_device() -> torch.device:
    """Return this process's device: the GPU that `distributed` chose, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def load_model(config: TrainConfig) -> Any:
    """Return the model of `config.model` in the dtype it trains in: on the CPU, or with ZeRO-3 in shares."""
    from l2p_arch import ArchError, L2PTransformer

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    try:
        if config.zero_stage == 3:
            settings = deepspeed_config(config, torch.distributed.get_world_size())
            model = load_partitioned(config.model / "transformer", dtype, settings, local_device())
        else:
            model = L2PTransformer.from_pretrained(
                config.model / "transformer", dtype=dtype, local_files_only=True, use_safetensors=True
            )
    except (OSError, ArchError) as error:
        raise TrainError(f"cannot load a model from {config.model}: {str(error).splitlines()[0]}") from error
    if config.adapts:
        add_adapters(model, config)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.head_tile:
        model.enable_head_tiling(config.head_tile)
    compile_blocks(model, config)
    return model.train()


def compile_blocks(model: Any, config: TrainConfig) -> None:
    """Compile every main block (the repeated part: one compilation serves all) as `config.compile` says.

    "auto" compiles where a C++ compiler is on the path, and goes on without where one fails.
    """
    if config.compile == "auto":
        torch._dynamo.config.suppress_errors = True
        if not shutil.which(os.environ.get("CXX", "g++")):
            return
    if config.compile:
        for name in model.block_names():
            model.get_submodule(name).compile()


def uncompiled() -> AbstractContextManager[Any]:
    """Return a context in which compiled blocks run as they are: another batch size would compile anew."""
    return torch.compiler.set_stance("force_eager")


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
        [pair for pair in named if (pair[0] in plan.new_ends) == new and _by_muon(pair[1], config) == muon]
        for new in (False, True)
        for muon in (False, True)
    ]
    groups = [group for group in groups if group]
    optimizer = _optimizer(groups, plan, config)
    # DeepSpeed collects garbage and prints at every stage of its set-up; frozen objects make that quick.
    gc.freeze()
    with redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, processes, plan.trainable_count),
            dist_init_required=False,
        )
    return engine, Masters(engine, optimizer, [pair for group in groups for pair in group])


def share_gradients(engine: Any, plan: FreezePlan, config: TrainConfig) -> SharedMemory | None:
    """Take the exchange of whole gradients from DeepSpeed where all processes are on this machine's CPU.

    Then `average_gradients` has to come before the engine's step. Collective.
    """
    if config.zero_stage > 0:
        return None
    shared = share_memory(plan.trainable_count * (2 if config.precision == "bf16" else 4))
    if shared is not None:
        engine.enable_backward_allreduce = False
        optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        if isinstance(optimizer, Muon):
            optimizer.shared_memory = shared
    return shared


def average_gradients(engine: Any, shared: SharedMemory) -> None:
    """Replace every gradient by its mean over all processes. Collective."""
    trainable = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        if parameter.grad is None:  # of what this process's samples did not use
            parameter.grad = torch.zeros_like(parameter)
    shared.average([parameter.grad for parameter in trainable])


def _by_muon(parameter: nn.Parameter, config: TrainConfig) -> bool:
    return config.optimizer == "muon" and Muon.takes(parameter)


def _optimizer(
    groups: list[list[tuple[str, nn.Parameter]]], plan: FreezePlan, config: TrainConfig
) -> torch.optim.Optimizer:
    settings = [
        {
            "params": [parameter for _, parameter in group],
            "multiplier": config.new_end_multiplier if group[0][0] in plan.new_ends else 1.0,
            "muon": _by_muon(group[0][1], config),
        }
        for group in groups
    ]
    adamw: dict[str, Any] = {
        "lr": 0.0,  # set before every step; some ZeRO stages allocate their state with an empty step
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if config.optimizer == "muon":
        return Muon(settings, momentum=config.muon_momentum, **adamw)
    return torch.optim.AdamW(settings, **adamw)


def attention_for_device() -> AbstractContextManager[Any]:
    """Return the context in which attention is quickest: on a CPU the plain formula, on a GPU PyTorch's own.

    The CPU's fused kernel is slow going backward in bf16 at the few tokens that one trains with there.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn the device's out-of-memory error into what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainError(
            "out of GPU memory; try in this order: gradient_checkpointing = true, a smaller micro_batch_size "
            "(batch_size stays), a higher zero_stage, offload_optimizer = true; --dry-run estimates each"
        ) from error


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next step; the new ends have their multiple of it."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]

"""What both trainings share: processes, an exact resume, a learning-rate schedule, a log."""

import atexit
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Ema:
    """Exponential moving average of parameters, with a warm-up so that early weights are forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, list(model.parameters()), weight)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the averages."""
        for value, parameter in zip(self.values, model.parameters(), strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]


@dataclass(kw_only=True)
class Run:
    """One training run in a directory; start it again and it goes on from its last checkpoint.

    Under torchrun every process works on its own part of the batch; alone it is the only process.
    """

    output: Path
    steps: int
    warmup: int = 50
    save_every: int = 200  # steps
    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", 0)))
    world_size: int = field(default_factory=lambda: int(os.environ.get("WORLD_SIZE", 1)))

    def __post_init__(self) -> None:
        torch.set_num_threads(1 if self.world_size > 1 else torch.get_num_threads())
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")
            # A thread of gloo's that lets go of its last tensor while Python ends would abort the process.
            atexit.register(dist.destroy_process_group)
        self.output.mkdir(parents=True, exist_ok=True)
        self.started = time.time()

    @property
    def checkpoint(self) -> Path:
        return self.output / "checkpoint.pt"

    def resume(self, **state: Any) -> int:
        """Load every object's state from the checkpoint, if there is one; return the next step."""
        if not self.checkpoint.exists():
            return 0
        saved = torch.load(self.checkpoint, weights_only=True)
        for name, item in state.items():
            item.load_state_dict(saved[name])
        return int(saved["step"])

    def save(self, step: int, **state: Any) -> None:
        if self.rank == 0:
            temporary = self.checkpoint.with_suffix(".tmp")
            torch.save({name: item.state_dict() for name, item in state.items()} | {"step": step}, temporary)
            temporary.replace(self.checkpoint)

    def learning_rate(self, step: int) -> float:
        """Return the factor of the peak rate: linear warm-up, then cosine to 1 %."""
        rest = max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return min(1.0, (step + 1) / self.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * rest)))

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Average the gradients over all processes, in one message."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def log(self, step: int, **values: float) -> None:
        if self.rank == 0:
            row = {"step": step, "seconds": round(time.time() - self.started, 1)} | {
                k: round(v, 5) for k, v in values.items()
            }
            with (self.output / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)

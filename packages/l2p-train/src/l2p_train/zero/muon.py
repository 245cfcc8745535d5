"""Muon (Jordan et al. 2024): for weight matrices, momentum whose every singular value is made about 1.

Not the paper's optimiser (Table 3: AdamW). A head that starts from nothing learns far quicker with it: on the
miniature 600 steps reach what AdamW does not in 1,700 (docs/notes/miniature.md).

Why not `torch.optim.Muon`: it takes 2-D parameters only, and the head is made of convolutions, which have no
flat view in channels-last memory; every process would orthogonalise every matrix; and DeepSpeed takes one
optimizer, so that AdamW's parameters have to be in it too. On what it does take it is the tests' oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from l2p_train.errors import TrainError
from l2p_train.zero.shared_memory import SharedMemory

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that Jordan et al. iterate
_ITERATIONS = 5
_SMALLEST_SIDE = 8  # an image's 3 channels, say, are better left to AdamW


class Muon(torch.optim.AdamW):
    """AdamW whose groups marked `"muon": True` take orthogonalised steps instead.

    Such a step has the size that AdamW's usually have, 0.2 in root mean square at a learning rate of 1 (Liu
    et al. 2025, arXiv 2502.16982), so that learning rates carry over from one to the other. The momentum lies
    where AdamW keeps its first moment, `exp_avg`.

    Args:
        groups: AdamW's, each with a key "muon". Where it is True, the parameters are those that `takes`
            accepts, whole, not sharded (ZeRO 0), and alike on every process, which orthogonalises its share
            of them; of the group's settings `lr` and `weight_decay` (decoupled, times lr) then count.
        momentum: of the gradients' moving average, in [0, 1); the step takes Nesterov's form of it.
        adamw: the defaults of the groups, as of `torch.optim.AdamW`.

    Raises:
        TrainError: `momentum` is out of its range.
    """

    param_groups: list[dict[str, Any]]
    shared_memory: SharedMemory | None = None  # of processes on one machine's CPU; else updates are broadcast

    def __init__(self, groups: Sequence[dict[str, Any]], *, momentum: float = 0.95, **adamw: Any) -> None:
        if not 0 <= momentum < 1:
            raise TrainError(f"muon_momentum is {momentum}; it must be in [0, 1)")
        super().__init__(groups, **adamw)
        self.momentum = momentum

    @staticmethod
    def takes(parameter: Tensor) -> bool:
        """Say whether a parameter is a weight matrix or convolution with enough on both sides."""
        rows = parameter.shape[0] if parameter.ndim >= 2 else 0
        return rows >= _SMALLEST_SIDE and parameter.numel() // rows >= _SMALLEST_SIDE

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every group by its rule."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            result = super().step(closure) if self.param_groups else None
        finally:
            self.param_groups = groups
        matrices = [
            (parameter, group)
            for group in groups
            if group["muon"]
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        directions = [self._momentum_of(parameter) for parameter, _ in matrices]
        for (parameter, group), update in zip(
            matrices, _orthogonalise_all(directions, self.shared_memory), strict=True
        ):
            longest = max(parameter.shape[0], parameter.numel() // parameter.shape[0])
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.reshape(parameter.shape), alpha=-0.2 * math.sqrt(longest) * group["lr"])
        return result

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        """Update the momentum and return its Nesterov form as a matrix (rows, columns)."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg"].lerp_(parameter.grad, 1 - self.momentum)
        return parameter.grad.lerp(state["exp_avg"], self.momentum).flatten(1)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return U S V^T of a matrix U D V^T, in bfloat16: the same directions with sizes S of about 1.

    Five rounds of a quintic (Newton-Schulz) take each singular value, as a share of the Frobenius norm, close
    to 1 and no closer: shares of at least 0.002 to between 0.67 and 1.21. Smaller ones, which are no larger
    than bfloat16's rounding, grow up to 485-fold and end anywhere below that.

    Args:
        matrix: (rows, columns) of any floating type; zeros stay zeros.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def _orthogonalise_all(matrices: Sequence[Tensor], shared: SharedMemory | None = None) -> list[Tensor]:
    """Orthogonalise matrices that all processes hold alike; each does its share and sends it round."""
    if not matrices:
        return []
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = torch.distributed.get_world_size() if distributed else 1
    if processes == 1:
        return [orthogonalise(matrix) for matrix in matrices]
    rank, owners = torch.distributed.get_rank(), _owners(matrices, processes)
    own = [
        orthogonalise(matrix).flatten()
        for matrix, owner in zip(matrices, owners, strict=True)
        if owner == rank
    ]
    shares = [[index for index, owner in enumerate(owners) if owner == one] for one in range(processes)]
    sizes = [[matrices[index].numel() for index in share] for share in shares]
    if shared is not None:
        flats = shared.gather(own, [sum(some) for some in sizes])
    else:
        flats = [
            torch.cat(own) if process == rank and own else _bfloat16(sum(some), like=matrices[0])
            for process, some in enumerate(sizes)
        ]
        for process, flat in enumerate(flats):
            if len(flat):
                torch.distributed.broadcast(flat, src=process)
    results: list[Tensor] = [torch.empty(0)] * len(matrices)
    for share, some, flat in zip(shares, sizes, flats, strict=True):
        for index, part in zip(share, flat.split(some), strict=True):
            results[index] = part
    return results


def _owners(matrices: Sequence[Tensor], processes: int) -> list[int]:
    """Say which process does which matrix: the costliest first, each to the least loaded."""
    loads, owners = [0] * processes, [0] * len(matrices)
    costs = [matrix.numel() * min(matrix.shape) for matrix in matrices]
    for index in sorted(range(len(matrices)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners


def _bfloat16(elements: int, *, like: Tensor) -> Tensor:
    return torch.empty(elements, dtype=torch.bfloat16, device=like.device)

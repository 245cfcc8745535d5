"""What a forward costs (Fig. 4): measured on the device at hand, or counted on meta tensors.

Counted are floating-point operations and the peak of live tensors. The counts know no kernel: a device adds
its workspace and its allocator's slack to the memory, and reaches some share of its peak rate.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from l2p_eval.errors import EvalError


@dataclass(frozen=True, kw_only=True)
class Count:
    """Counted on meta tensors."""

    flops: int  # multiplications and additions of matrix products, convolutions and attention
    peak_activation_bytes: int  # most that lived at once, inputs included and weights not
    weight_bytes: int

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Measured. Memory is None where the device does not tell (a CPU)."""

    device: str
    repeats: int
    median_seconds: float
    quartiles_seconds: tuple[float, float]
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


def count(run: Callable[[], Any], *modules: torch.nn.Module) -> Count:
    """Run `run` once on meta tensors.

    Args:
        modules: whose weights count; they must lie on the meta device.

    Raises:
        EvalError: a weight is real, so that the run would compute.
    """
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    if any(tensor.device.type != "meta" for tensor in weights if tensor.numel() > 1 << 20):
        raise EvalError("counting wants models on the meta device; build them under torch.device('meta')")
    flops = FlopCounterMode(display=False)
    with torch.no_grad(), _flash_on_meta(), flops, _LiveBytes(weights) as live:
        run()
    return Count(
        flops=int(flops.get_total_flops()),
        peak_activation_bytes=live.peak,
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
    )


def measure(run: Callable[[], Any], device: str, *, repeats: int = 10, warmup: int = 2) -> Timing:
    """Return the median and quartiles of `run`'s time, by device events on a GPU; and its peak memory
    there.
    """
    if repeats < 1:
        raise EvalError(f"{repeats} repeats measure nothing; use 1 or more")
    with torch.inference_mode():
        for _ in range(warmup):
            run()
        gpu = device.startswith("cuda")
        if gpu:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [_once_on_gpu(run) if gpu else _once(run) for _ in range(repeats)]
    low, median, high = torch.tensor(seconds, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return Timing(
        device=torch.cuda.get_device_name(device) if gpu else "cpu",
        repeats=repeats,
        median_seconds=float(median),
        quartiles_seconds=(float(low), float(high)),
        peak_allocated_bytes=torch.cuda.max_memory_allocated(device) if gpu else None,
        peak_reserved_bytes=torch.cuda.max_memory_reserved(device) if gpu else None,
    )


def _once(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _once_on_gpu(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations create, and takes them off when they are freed."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._add(tensor)  # inputs made before
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._add(tensor)
        return result

    def _add(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _FlashAttention(TorchFunctionMode):
    """Attention on meta tensors as fused kernels have it: the matrix of scores never exists."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = args[:3] if len(args) >= 3 else (kwargs[k] for k in ("query", "key", "value"))
            if query.device.type == "meta":
                if key.shape[1] != query.shape[1]:  # grouped queries
                    groups = query.shape[1] // key.shape[1]
                    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
                return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _flash_on_meta() -> Iterator[None]:
    with _FlashAttention():
        yield

"""The corpus as training batches: exact order from (seed, epoch), no state to save.

Everything here is a function of the step: which rows, in which order, at which size, with which noise.
Resuming is therefore starting at another step.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from l2p_run.sizes import Size
from torch import Tensor

from l2p_train.config import TrainConfig
from l2p_train.data.conditioning import Conditioning, ConditioningCache
from l2p_train.data.corpus import Corpus, bucket_size
from l2p_train.errors import NonFiniteLossError
from l2p_train.machine.tensors import save_tensors
from l2p_train.noise import draw, draw_guidance, sample_generator


@dataclass
class Batch:
    """One micro batch of one process."""

    counters: list[int]  # sample counters
    ids: list[str]
    x_0: Tensor  # (B, 3, H, W) float32 in [-1, 1]
    noise: Tensor  # (B, 3, H, W) float32
    sigma: Tensor  # (B,) float32 in (0, 1]
    conditioning: list[Conditioning]

    def pin(self) -> None:
        """Move the pixels to memory that a GPU copies from while it computes: 200 MB each of a 4K image."""
        self.x_0, self.noise, self.sigma = (one.pin_memory() for one in (self.x_0, self.noise, self.sigma))


def save_batches(path: Path, batches: Sequence[Batch]) -> None:
    """Write what a process fed to the model in one step, with the ids of the images as metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{index}/{name}": getattr(batch, name).contiguous()
        for index, batch in enumerate(batches)
        for name in ("x_0", "noise", "sigma")
    }
    save_tensors(tensors, path, metadata={"ids": json.dumps([batch.ids for batch in batches])})


def refuse_non_finite(loss: float, batches: Sequence[Batch], output: Path, step: int, rank: int) -> None:
    """Raise `NonFiniteLossError` for a loss that is one, with this process's batches saved in `output`."""
    if math.isfinite(loss):
        return
    folder = output / "non-finite"
    save_batches(folder / f"step-{step:06d}-rank-{rank:03d}.safetensors", batches)
    raise NonFiniteLossError(
        f"the loss of step {step} is {loss}; the batch is in {folder}. Lower learning_rate, set "
        f"gradient_clipping, or look at the images of the batch; the last checkpoint is intact"
    )


class BatchPlan:
    """Which rows make up the batch of a step: a pure function of (seed, step).

    Rows of one size form a bucket; a batch comes from one bucket. Epoch e takes
    floor((e+1) * n / B) - floor(e * n / B) batches from a bucket of n rows, in an order of (seed, e);
    within a bucket the rows are an endless stream of permutations. So each row is seen once per pass over
    its bucket, and none is ever dropped or repeated to fill up.
    """

    def __init__(self, sizes: Sequence[Size], batch_size: int, seed: int) -> None:
        buckets: dict[Size, list[int]] = {}
        for index, size in enumerate(sizes):
            buckets.setdefault(size, []).append(index)
        self.buckets = sorted(buckets.items(), key=lambda item: item[0][::-1])  # by height, then width
        self.batch_size, self.seed = batch_size, seed
        self._order: tuple[int, np.ndarray] | None = None
        self._permutations: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def _batches_before(self, epoch: int) -> list[int]:
        """Return per bucket how many batches the epochs before `epoch` take."""
        return [epoch * len(rows) // self.batch_size for _, rows in self.buckets]

    def epoch_of(self, step: int) -> int:
        """Return the epoch of step `step`, by bisection."""
        low, high = 0, 1
        while sum(self._batches_before(high)) <= step:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sum(self._batches_before(middle)) <= step else (low, middle)
        return low

    def rows(self, step: int) -> tuple[Size, list[int]]:
        """Return the size and the row indices of the whole batch of step `step`."""
        with self._lock:
            return self._rows(step)

    def _rows(self, step: int) -> tuple[Size, list[int]]:
        epoch = self.epoch_of(step)
        before, after = self._batches_before(epoch), self._batches_before(epoch + 1)
        if self._order is None or self._order[0] != epoch:
            order = np.repeat(np.arange(len(self.buckets)), np.subtract(after, before))
            sample_generator(self.seed, 2**62 + epoch).shuffle(order)
            self._order = (epoch, order)
        order, position = self._order[1], step - sum(before)
        bucket = int(order[position])
        number = before[bucket] + int(np.count_nonzero(order[:position] == bucket))
        first = number * self.batch_size
        return self.buckets[bucket][0], [self._row(bucket, first + i) for i in range(self.batch_size)]

    def _row(self, bucket: int, position: int) -> int:
        rows = self.buckets[bucket][1]
        lap, offset = divmod(position, len(rows))
        permutation = self._permutations.get((bucket, lap))
        if permutation is None:
            key = np.array([self.seed, lap], dtype=np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, bucket + 1]))
            permutation = generator.permutation(len(rows))
            self._permutations[(bucket, lap)] = permutation
            while len(self._permutations) > 2 * len(self.buckets):
                self._permutations.popitem(last=False)
        return rows[int(permutation[offset])]


class BatchMaker:
    """Builds the micro batches of one process."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        conditioning: ConditioningCache,
        *,
        patch_size: int,
        rank: int = 0,
        world_size: int = 1,
        rows: Sequence[int] | None = None,
        polish: float = 0.0,
        scales: tuple[float, float] | None = None,
    ) -> None:
        """Prepare. `rows`: those of the corpus that train; None: all. `polish`: as `draw` takes it. `scales`:
        see `with_guidance`."""
        self.polish, self.scales = polish, scales
        self.config, self.corpus, self.conditioning, self.rank = config, corpus, conditioning, rank
        self.micro_batch_size, self.accumulation = config.batch_layout(world_size)
        self.rows = range(len(corpus.rows)) if rows is None else rows
        sizes: Mapping[Size, Size] = {
            size: bucket_size(size, config.resolution, patch_size)
            for size in {corpus.rows[row].size for row in self.rows}
        }
        self.plan = BatchPlan(
            [sizes[corpus.rows[row].size] for row in self.rows], config.batch_size, config.seed
        )

    def batches(self, step: int) -> list[Batch]:
        """Return this process's micro batches of step `step`, one per accumulation step."""
        size, chosen = self.plan.rows(step)
        rows = [self.rows[index] for index in chosen]
        share = self.micro_batch_size * self.accumulation
        first = self.rank * share
        return [
            self._batch(
                step * self.config.batch_size + start, rows[start : start + self.micro_batch_size], size
            )
            for start in range(first, first + share, self.micro_batch_size)
        ]

    def _batch(self, first_counter: int, rows: Sequence[int], size: Size) -> Batch:
        counters = list(range(first_counter, first_counter + len(rows)))
        draws = [draw(self.config, counter, size.height, size.width, self.polish) for counter in counters]
        prompts = [
            "" if one.drop_caption else self.corpus.rows[row].prompt
            for one, row in zip(draws, rows, strict=True)
        ]
        return Batch(
            counters=counters,
            ids=[self.corpus.rows[row].id for row in rows],
            x_0=torch.stack([self.corpus.image(row, size) for row in rows]).float() / 127.5 - 1,
            noise=torch.stack([one.noise for one in draws]),
            sigma=torch.tensor([one.sigma for one in draws], dtype=torch.float32),
            conditioning=with_guidance(
                [self.conditioning[prompt] for prompt in prompts], self.config.seed, counters, self.scales
            ),
        )


def with_guidance(
    conditioning: Sequence[Conditioning],
    seed: int,
    counters: Sequence[int],
    scales: tuple[float, float] | None,
) -> list[Conditioning]:
    """Return each sample's conditioning with its guidance, which a student learns to take as a number.

    Args:
        seed, counters: see `draw_guidance`.
        scales: the lowest and the highest; None: none is learned.
    """
    if scales is None:
        return list(conditioning)
    drawn = [draw_guidance(seed, counter, scales) for counter in counters]
    return [
        {**sample, "guidance": torch.tensor(scale)} for sample, scale in zip(conditioning, drawn, strict=True)
    ]


def prefetched(
    maker: BatchMaker, steps: range, workers: int, device: torch.device | None = None
) -> Iterator[tuple[int, list[Batch]]]:
    """Yield (step, micro batches), made by `workers` threads ahead of their use (0: when asked for).

    Args:
        device: where they go. For a GPU the threads pin them, too: the training need not wait for the copy.
    """
    on_gpu = device is not None and device.type == "cuda"

    def make(step: int) -> list[Batch]:
        batches = maker.batches(step)
        for batch in batches if on_gpu else ():
            batch.pin()
        return batches

    def use_device() -> None:
        if on_gpu:  # a new thread is on GPU 0, where every process would else open a context
            torch.cuda.set_device(device)

    if workers == 0:
        yield from ((step, make(step)) for step in steps)
        return
    ahead: deque[tuple[int, Future[list[Batch]]]] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="loader", initializer=use_device)
    try:
        for step in steps:
            ahead.append((step, executor.submit(make, step)))
            if len(ahead) > workers:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)

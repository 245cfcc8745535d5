"""The corpus as training batches: streaming Parquet, exact order from (seed, epoch), no state to save.

Everything here is a function of the step: which rows, in which order, at which size, with which noise.
Resuming is therefore starting at another step.
"""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2p_train.conditioning import Conditioning, ConditioningCache
from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.noise import draw, sample_generator

Size = tuple[int, int]  # height, width in px


@dataclass(frozen=True)
class Row:
    """Where one image of the corpus lies, and what belongs to it."""

    id: str
    prompt: str
    file: int
    row_group: int
    offset: int  # within the row group
    size: Size  # as stored


@dataclass
class Batch:
    """One micro batch of one process."""

    counters: list[int]  # sample counters
    ids: list[str]
    x_0: Tensor  # (B, 3, H, W) float32 in [-1, 1]
    noise: Tensor  # (B, 3, H, W) float32
    sigma: Tensor  # (B,) float32 in (0, 1]
    conditioning: list[Conditioning]


class Corpus:
    """Random access to the images of a corpus directory, decoded, with a bounded cache."""

    def __init__(self, directory: Path, image_cache_mb: int = 1024) -> None:
        import pyarrow.parquet as pq

        self.files = sorted(Path(directory).glob("*.parquet"))
        if not self.files:
            raise TrainError(f"no corpus in {directory}: no *.parquet file there")
        self.rows: list[Row] = []
        self._readers: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._cache: dict[tuple[int, Size], Tensor] = {}
        self._cache_room = image_cache_mb * 2**20
        self._lock = threading.Lock()
        for number, path in enumerate(self.files):
            try:
                reader = pq.ParquetFile(path)
                names = set(reader.schema_arrow.names)
                missing = {"id", "prompt", "width", "height", "image"} - names
                if missing:
                    raise TrainError(f"{path} is no corpus shard: it lacks the column {sorted(missing)[0]!r}")
                for group in range(reader.num_row_groups):
                    table = reader.read_row_group(
                        group, columns=["id", "prompt", "width", "height"]
                    ).to_pydict()
                    self.rows += [
                        Row(str(id_), prompt, number, group, offset, (height, width))
                        for offset, (id_, prompt, width, height) in enumerate(
                            zip(table["id"], table["prompt"], table["width"], table["height"], strict=True)
                        )
                    ]
            except (OSError, ValueError) as error:
                if isinstance(error, TrainError):
                    raise
                raise TrainError(f"corrupt corpus shard {path}: {error}; write the corpus again") from error
        if not self.rows:
            raise TrainError(f"the corpus in {directory} has no rows")

    def image(self, index: int, size: Size) -> Tensor:
        """Return row `index` as uint8 (3, H, W) at `size`.

        An image of another size is resized to exactly `size` with an antialiasing Lanczos filter, never
        cropped: buckets follow the aspect ratio (`bucket_size`), so the stretch stays within a few percent.
        """
        key = (index, size)
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        pixels = torch.from_numpy(_decode(self._encoded(index), size, self.rows[index].id))
        if self._cache_room >= pixels.numel():
            self._cache_room -= pixels.numel()
            self._cache[key] = pixels
        return pixels

    def _encoded(self, index: int) -> bytes:
        import pyarrow.parquet as pq

        row = self.rows[index]
        key = (row.file, row.row_group)
        with self._lock:
            column = self._groups.get(key)
            if column is None:
                if row.file not in self._readers:
                    self._readers[row.file] = pq.ParquetFile(self.files[row.file])
                table = self._readers[row.file].read_row_group(row.row_group, columns=["image"])
                column = table.column("image").combine_chunks()
                self._groups[key] = column
                while len(self._groups) > 4:
                    self._groups.popitem(last=False)
        record = column[row.offset].as_py()
        if not record or not record.get("bytes"):
            raise TrainError(f"{self.files[row.file]}: row {row.id} holds no image bytes")
        return record["bytes"]


def _decode(encoded: bytes, size: Size, name: str) -> np.ndarray:
    """Return uint8 (3, H, W)."""
    from PIL import Image, UnidentifiedImageError

    height, width = size
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise TrainError(f"image {name} of the corpus cannot be decoded: {error}") from error
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def bucket_size(size: Size, resolution: int | None, multiple: int) -> Size:
    """Return the size at which an image trains.

    Without `resolution` it is the image's own, which must be a multiple of the patch. With it: about
    resolution^2 pixels, the image's aspect ratio, each side the nearest multiple of `multiple`.
    """
    height, width = size
    if resolution is None:
        if height % multiple or width % multiple:
            near = max(multiple, round(math.sqrt(height * width) / multiple) * multiple)
            raise TrainError(
                f"the corpus holds an image of {width} x {height} px, not multiples of the patch size "
                f"{multiple}; set resolution = {near} to have images resized"
            )
        return size
    if resolution % multiple:
        raise TrainError(f"resolution {resolution} is not a multiple of patch size {multiple}")
    aspect = math.sqrt(height / width)
    sides = (resolution * aspect, resolution / aspect)
    tall, wide = (max(multiple, round(side / multiple) * multiple) for side in sides)
    return tall, wide


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
        self.buckets = sorted(buckets.items())
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
    ) -> None:
        self.config, self.corpus, self.conditioning, self.rank = config, corpus, conditioning, rank
        self.micro_batch_size, self.accumulation = config.batch_layout(world_size)
        sizes: Mapping[Size, Size] = {
            size: bucket_size(size, config.resolution, patch_size)
            for size in {row.size for row in corpus.rows}
        }
        self.plan = BatchPlan([sizes[row.size] for row in corpus.rows], config.batch_size, config.seed)

    def batches(self, step: int) -> list[Batch]:
        """Return this process's micro batches of step `step`, one per accumulation step."""
        size, rows = self.plan.rows(step)
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
        draws = [draw(self.config, counter, *size) for counter in counters]
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
            conditioning=[self.conditioning[prompt] for prompt in prompts],
        )


def prefetched(maker: BatchMaker, steps: range, workers: int) -> Iterator[tuple[int, list[Batch]]]:
    """Yield (step, micro batches), made by `workers` threads ahead of their use (0: when asked for)."""
    if workers == 0:
        yield from ((step, maker.batches(step)) for step in steps)
        return
    ahead: deque[tuple[int, Future[list[Batch]]]] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    try:
        for step in steps:
            ahead.append((step, executor.submit(maker.batches, step)))
            if len(ahead) > workers:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)

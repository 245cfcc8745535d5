"""Random access to a corpus: Parquet shards read by row group, images decoded and resized."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2p_train.errors import TrainError

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

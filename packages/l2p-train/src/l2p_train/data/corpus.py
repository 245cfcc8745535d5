"""Random access to a corpus: its images by row, decoded and resized."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from l2p_run.errors import raised_as
from l2p_run.pictures import open_picture
from l2p_run.sizes import Size
from torch import Tensor

from l2p_train.config import TrainConfig
from l2p_train.data.manifest import check_ids, check_rows
from l2p_train.data.shards import COLUMNS, open_shards
from l2p_train.data.storage import Place
from l2p_train.errors import TrainError


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
    """Random access to the images of a corpus, decoded, with a bounded cache.

    Args:
        place: its directory, or its address (shards.py).
        image_cache_mb: of decoded images, in memory.
        cache: for a corpus at an address, the folder that keeps the images of the shards in use.
        cache_gb: of disk that they may take, about.
    """

    def __init__(
        self, place: Place, image_cache_mb: int = 1024, *, cache: Path | None = None, cache_gb: float = 100.0
    ) -> None:
        self.shards = open_shards(place, cache, cache_gb)
        self.rows = [
            Row(str(id_), prompt, file, group, offset, Size(width=width, height=height))
            for file, groups in enumerate(self.shards.groups())
            for group, columns in enumerate(groups)
            for offset, (id_, prompt, width, height) in enumerate(
                zip(*(columns[name] for name in COLUMNS), strict=True)
            )
        ]
        if not self.rows:
            raise TrainError(f"the corpus in {place} has no rows")
        names = [Path(name).name for name in self.shards.names]
        counts = Counter(names[row.file] for row in self.rows)
        check_rows({name: counts[name] for name in names}, self.shards.listed, str(place))
        check_ids([(row.id, names[row.file]) for row in self.rows])
        self._cache: dict[tuple[int, Size], Tensor] = {}
        self._cache_room = image_cache_mb * 2**20

    @cached_property
    def digest(self) -> str:
        """Return a hash of the rows in their order: ids, prompts and sizes, wherever the corpus lies."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(repr((row.id, row.prompt, *row.size)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:20]

    def image(self, index: int, size: Size) -> Tensor:
        """Return row `index` as uint8 (3, H, W) at `size`.

        An image of another size is resized to exactly `size` with an antialiasing Lanczos filter, never
        cropped: buckets follow the aspect ratio (`bucket_size`), so the stretch stays within a few percent.
        """
        key = (index, size)
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        pixels = torch.from_numpy(_decode(self._encoded(index), size, self.rows[index]))
        if self._cache_room >= pixels.numel():
            self._cache_room -= pixels.numel()
            self._cache[key] = pixels
        return pixels

    def _encoded(self, index: int) -> bytes:
        row = self.rows[index]
        encoded = self.shards.image(row.file, row.row_group, row.offset)
        if not encoded:
            raise TrainError(f"{self.shards.names[row.file]}: row {row.id} holds no image bytes")
        return encoded


def open_corpus(config: TrainConfig) -> Corpus:
    """Open the corpus of a run."""
    cache = config.corpus_cache or config.output / "corpus-cache"
    return Corpus(config.corpus, config.image_cache_mb, cache=cache, cache_gb=config.corpus_cache_gb)


def first_images(
    config: TrainConfig, *, multiple: int, wanted: Callable[[int], int]
) -> tuple[Tensor, list[str]]:
    """Return the corpus' first images as (N, 3, H, W) in [-1, 1], and their prompts.

    All are of one size, that of the first image, and as the trainer will show them.

    Args:
        config: of the run; names the corpus and how it is resized.
        multiple: the patch, px.
        wanted: takes the pixels of an image and says how many images at most.
    """
    corpus = open_corpus(replace(config, image_cache_mb=0))
    sizes = [bucket_size(row.size, config.resolution, multiple) for row in corpus.rows]
    count = wanted(sizes[0].pixels)
    chosen = [index for index, size in enumerate(sizes) if size == sizes[0]][:count]
    images = torch.stack([corpus.image(index, sizes[0]) for index in chosen]).float() / 127.5 - 1
    return images, [corpus.rows[index].prompt for index in chosen]


def _decode(encoded: bytes, size: Size, row: Row) -> np.ndarray:
    """Return uint8 (3, H, W)."""
    from PIL import Image

    image = raised_as(TrainError)(open_picture)(encoded, name=f"image {row.id} of the corpus")
    if image.size != row.size:  # its bucket was chosen by what the row says
        turned = image.size == (row.size.height, row.size.width)
        remedy = "an earlier version imported it on its side: import it" if turned else "write the corpus"
        raise TrainError(
            f"image {row.id} of the corpus has {image.width} x {image.height} px, its row says "
            f"{row.size.width} x {row.size.height}; {remedy} again"
        )
    if image.size != size:  # Pillow has (width, height), too
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def bucket_size(size: Size, resolution: int | None, multiple: int) -> Size:
    """Return the size at which an image trains.

    Without `resolution` it is the image's own, which must be a multiple of the patch. With it: about
    resolution^2 pixels, the image's aspect ratio, each side the nearest multiple of `multiple`.
    """
    if resolution is None:
        if size.height % multiple or size.width % multiple:
            near = max(multiple, round(math.sqrt(size.pixels) / multiple) * multiple)
            raise TrainError(
                f"the corpus holds an image of {size.width} x {size.height} px, not multiples of the patch "
                f"size {multiple}; set resolution = {near} to have images resized"
            )
        return size
    if resolution % multiple:
        raise TrainError(f"resolution {resolution} is not a multiple of patch size {multiple}")
    aspect = math.sqrt(size.height / size.width)
    sides = (resolution / aspect, resolution * aspect)
    width, height = (max(multiple, round(side / multiple) * multiple) for side in sides)
    return Size(width=width, height=height)

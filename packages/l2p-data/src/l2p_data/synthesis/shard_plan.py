"""Which rows each shard holds: a pure function of the prompts and the settings, made when it is asked for.

A row takes 1 kB as a dictionary and as much again as JSON; millions of them would fill the memory of the
process that hands out the work. What stays is the table of prompts, and with several sizes 8 bytes a row.
"""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import polars as pl
from l2p_run.sizes import Size

from l2p_data.corpus.identity import image_seed
from l2p_data.synthesis.buckets import bucket_of

COLUMNS = ("prompt", "language", "category", "subclass", "superclass", "created_by")


class ShardPlan(Sequence[list[dict[str, Any]]]):
    """The shards of a synthesis, each a list of rows; those of one size stand together.

    Args:
        prompts: records with an id and `COLUMNS`.
        seeds: images per prompt.
        sizes: that images have, drawn per image where there are several.
        rows_per_shard: the last one may have fewer.
    """

    def __init__(self, prompts: pl.DataFrame, seeds: int, sizes: Sequence[Size], rows_per_shard: int) -> None:
        self.prompts, self.seeds, self.sizes = prompts.select("id", *COLUMNS), seeds, list(sizes)
        self.rows, self.rows_per_shard = prompts.height * seeds, rows_per_shard
        self._order: np.ndarray | None = None
        if len(self.sizes) > 1:
            place = {size: index for index, size in reversed(list(enumerate(self.sizes)))}
            buckets = (
                place[bucket_of(name, index, self.sizes)]
                for name in self.prompts["id"]
                for index in range(seeds)
            )
            self._order = np.argsort(np.fromiter(buckets, np.int32, count=self.rows), kind="stable")

    def __len__(self) -> int:
        return -(-self.rows // self.rows_per_shard)

    @overload
    def __getitem__(self, index: int) -> list[dict[str, Any]]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[dict[str, Any]]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Return the rows of a shard."""
        if isinstance(index, slice):
            return [self[one] for one in range(len(self))[index]]
        start = range(len(self))[index] * self.rows_per_shard  # raises IndexError as a list does
        return list(self._rows(start, min(start + self.rows_per_shard, self.rows)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of any sequence that is compared by content

    def ids(self) -> Iterator[str]:
        """Yield the ids of all rows, in the order of the shards."""
        names = self.prompts["id"]
        for row in range(self.rows) if self._order is None else self._order:
            yield row_id(names[int(row) // self.seeds], int(row) % self.seeds)

    def _rows(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        places = np.arange(start, stop) if self._order is None else self._order[start:stop]
        records = self.prompts[places // self.seeds].iter_rows(named=True)
        for record, index in zip(records, (places % self.seeds).tolist(), strict=True):
            width, height = bucket_of(record["id"], index, self.sizes)
            yield {
                "id": row_id(record["id"], index),
                **{name: record[name] for name in COLUMNS},
                "seed": image_seed(record["id"], index),
                "width": width,
                "height": height,
            }


def row_id(prompt: str, index: int) -> str:
    """Return the id of a prompt's `index`-th image."""
    return f"{prompt}-{index:02d}"

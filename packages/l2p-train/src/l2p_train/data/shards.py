"""The shards of a corpus, wherever it lies: which rows they hold, and the encoded image of a row.

Those of a local directory are read where they are. Of a corpus at an address ("s3://bucket/corpus") the
ids, prompts and sizes are read over the network, a few kilobytes a shard; the images of a shard are fetched
when the first of them is wanted, into a bounded folder that the processes of a machine share. There they are
an Arrow file, so that reading one image touches that image alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from l2p_run.errors import explained, is_environment, raised_as
from l2p_run.places import atomic_path

from l2p_train.data.manifest import ListedShard, check_contents, listed_shards, local_sizes
from l2p_train.data.storage import Place, Store, is_address, one_at_a_time
from l2p_train.errors import TrainError

COLUMNS = ("id", "prompt", "width", "height")
_READERS = 16  # shards whose rows are read at a time
_OPEN_GROUPS = 4  # row groups that are kept, decoded
logger = logging.getLogger(__name__)
Group = dict[str, list[Any]]
"""The `COLUMNS` of one row group."""


class Shards(Protocol):
    """What `Corpus` reads."""

    names: list[str]
    listed: list[ListedShard] | None  # what the corpus's manifest says, if it has one

    def groups(self) -> list[list[Group]]:
        """Return for each shard its row groups' ids, prompts and sizes."""

    def image(self, file: int, group: int, offset: int) -> bytes | None:
        """Return the encoded image of a row, None if it has none; from any thread."""


def open_shards(corpus: Place, cache: Path | None, cache_gb: float) -> Shards:
    """Open a corpus.

    Args:
        corpus: a directory, or an address.
        cache: where images of a corpus at an address are kept.
        cache_gb: of disk that they may take, about.

    Raises:
        TrainError: there is no corpus.
    """
    if not is_address(corpus):
        return LocalShards(Path(corpus))
    if cache is None:
        raise TrainError(f"the corpus {corpus} needs a folder to keep images in; give one")
    return RemoteShards(str(corpus), cache, cache_gb)


def check_corpus(corpus: Place) -> None:
    """Raise `TrainError` unless there is a corpus, whole and as its manifest says.

    A local corpus is hashed, once; of one at an address the sizes are compared.
    """
    open_shards(corpus, Path(), 0.0)
    if not is_address(corpus):
        check_contents(Path(corpus))


def first_size(corpus: Place) -> tuple[int, int]:
    """Return the height and width in px of a corpus's first image."""
    shards = open_shards(corpus, Path(), 0.0)
    shards.names = shards.names[:1]
    filled = [group for group in shards.groups()[0] if group["height"]]
    if not filled:
        raise TrainError(f"the corpus shard {shards.names[0]} has no rows; leave the file out")
    group = filled[0]
    return group["height"][0], group["width"][0]


class LocalShards:
    """Shards in a directory."""

    def __init__(self, directory: Path) -> None:
        sizes = local_sizes(directory)
        files = sorted(name for name in sizes if name.endswith(".parquet") and "/" not in name)
        if not files:
            raise TrainError(f"no corpus in {directory}: no *.parquet file there")
        self.listed = listed_shards(sizes, lambda name: (directory / name).read_bytes(), str(directory))
        self.names = [str(directory / name) for name in files]
        self._readers: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def groups(self) -> list[list[Group]]:
        return [_groups_of(name, name) for name in self.names]

    def image(self, file: int, group: int, offset: int) -> bytes | None:
        import pyarrow.parquet as pq

        with self._lock:
            column = self._groups.get((file, group))
            if column is None:
                if file not in self._readers:
                    self._readers[file] = pq.ParquetFile(self.names[file])
                column = _images(self._readers[file].read_row_group(group, columns=["image"]))
                self._groups[file, group] = column
                while len(self._groups) > _OPEN_GROUPS:
                    self._groups.popitem(last=False)
        found: bytes | None = column[offset].as_py()
        return found


class RemoteShards:
    """Shards at an address, with the images of those in use in `cache`."""

    def __init__(self, address: str, cache: Path, cache_gb: float) -> None:
        self.store, self.cache, self.room = Store(address), cache, int(cache_gb * 1e9)
        found = self.store.sizes()
        sizes = {name: size for name, size in found.items() if name.endswith(".parquet") and "/" not in name}
        if not sizes:
            raise TrainError(f"no corpus in {address}: no *.parquet file there")
        self.listed = listed_shards(found, self.store.read, address)
        self.files, self.bytes = list(sizes), sum(sizes.values())
        self.names = [f"{self.store.address}/{name}" for name in self.files]
        self._open: dict[int, tuple[Path, Any]] = {}
        self._lock = threading.Lock()

    def groups(self) -> list[list[Group]]:
        if self.bytes > self.room:
            logger.warning(
                "the corpus in %s has %.1f GB, corpus_cache_gb is %g: shards will be fetched again and again",
                *(self.store.address, self.bytes / 1e9, self.room / 1e9),
            )

        def read(number: int) -> list[Group]:
            with self.store.open(self.files[number]) as file:
                return _groups_of(file, self.names[number])

        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(read, range(len(self.names))))

    def image(self, file: int, group: int, offset: int) -> bytes | None:
        import pyarrow as pa

        with self._lock:
            known = self._open.get(file)
        if known is None:  # without the lock: other shards may be fetched at the same time
            path = self._fetched(file)
            known = path, pa.ipc.open_file(pa.memory_map(str(path)))
            with self._lock:
                self._open[file] = known
        found: bytes | None = known[1].get_batch(group).column(0)[offset].as_py()
        return found

    def _fetched(self, file: int) -> Path:
        """Return the local file with the images of a shard, fetched by the first process that wants it."""
        # Another corpus at the same address has other names: of size, time or checksum, as the store tells.
        key = hashlib.sha256(self.store.fs.ukey(self.store.path(self.files[file])).encode()).hexdigest()[:16]
        path = self.cache / f"{Path(self.files[file]).stem}-{key}.arrow"
        with one_at_a_time(self.cache / f".{path.stem}.lock"):
            if path.is_file():
                os.utime(path)
            else:
                with (
                    raised_as(TrainError),
                    atomic_path(path) as temporary,
                    self.store.open(self.files[file]) as remote,
                ):
                    _write_images(remote, self.names[file], temporary)
                self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        """Delete the images that were fetched or first used longest ago; whoever reads them may go on."""
        found = sorted((one for one in self.cache.glob("*.arrow") if one != newest), key=_used)
        free = self.room - newest.stat().st_size - sum(map(_size, found))
        for path in found:
            if free >= 0:
                break
            free += _size(path)
            path.unlink(missing_ok=True)
        # An open file takes its room until it is closed.
        with self._lock:
            self._open = {number: known for number, known in self._open.items() if known[0].is_file()}


def _groups_of(source: Any, name: str) -> list[Group]:
    """Return the ids, prompts and sizes of a shard, per row group."""
    import pyarrow.parquet as pq

    try:
        reader = pq.ParquetFile(source, pre_buffer=True)
        if missing := {*COLUMNS, "image"} - set(reader.schema_arrow.names):
            raise TrainError(f"{name} is no corpus shard: it lacks the column {sorted(missing)[0]!r}")
        _check_images(reader.schema_arrow.field("image").type, name)
        groups = [
            reader.read_row_group(group, columns=list(COLUMNS)).to_pydict()
            for group in range(reader.num_row_groups)
        ]
        for group in groups:
            _check_rows(group, name)
        return groups
    except (OSError, ValueError) as error:
        if isinstance(error, TrainError):
            raise
        if is_environment(error):  # permissions and broken devices: the shard may be whole
            raise TrainError(explained(f"cannot read the corpus shard {name}", error)) from error
        raise TrainError(f"corrupt corpus shard {name}: {error}; write the corpus again") from error


def _check_images(kind: Any, name: str) -> None:
    """Raise `TrainError` for a column `image` of another Arrow type than Hugging Face datasets write."""
    import pyarrow as pa

    held = (
        kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else None
    )
    binary = (pa.binary(), pa.large_binary(), pa.binary_view())
    if held not in binary:
        raise TrainError(
            f"{name} is no corpus shard: its column image is {kind}, wanted a struct with the encoded "
            "picture as bytes, as Hugging Face datasets write it; import the pictures with l2p-data import"
        )


def _check_rows(group: Group, name: str) -> None:
    """Raise `TrainError` for a row whose prompt is no text or whose size is no number of px."""
    for id_, prompt, *size in zip(*(group[column] for column in COLUMNS), strict=True):
        if not isinstance(prompt, str):
            raise TrainError(
                f"row {id_} of {name} has prompt {prompt!r:.80}, wanted text; mend it or leave it out"
            )
        for side, px in zip(("width", "height"), size, strict=True):
            if not isinstance(px, int) or px < 1:
                raise TrainError(
                    f"row {id_} of {name} has {side} {px!r:.80}, wanted a whole number of px from 1; "
                    "mend it or leave it out"
                )


def _images(table: Any) -> Any:
    """Return the encoded images of a row group, as a chunked array."""
    import pyarrow.compute as pc

    return pc.struct_field(table.column("image"), "bytes")


def _write_images(source: Any, name: str, path: Path) -> None:
    """Write the images of a shard as an Arrow file, one batch per row group; one of them is in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("bytes", pa.large_binary())])
    try:
        reader = pq.ParquetFile(source, pre_buffer=True)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for group in range(reader.num_row_groups):
                images = _images(reader.read_row_group(group, columns=["image"])).cast(pa.large_binary())
                writer.write_batch(pa.record_batch([images.combine_chunks()], schema=schema))
    except (OSError, ValueError) as error:
        raise TrainError(f"cannot fetch the corpus shard {name}: {error}; run again") from error


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process was quicker
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

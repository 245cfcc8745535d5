"""A folder at an address: any filesystem that fsspec speaks to, such as "s3://bucket/run".

A file is there whole or not at all: object stores show an upload only when it is complete, and a download
gets its name when it is. For single files `l2p_run.places` is enough; this moves folders and lists them.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_run.errors import UserError, one_line, raised_as
from l2p_run.storage.addresses import BUCKETS, REACH, install_hint
from l2p_run.storage.atomic import TEMPORARY_SUFFIX, atomic_folder, atomic_path

_TRANSFERS = 8  # at a time


class Store:
    """A folder at an address. Names are relative to it, with "/".

    Attributes:
        error: what is raised; a package's own error where it has a `Store` of its own.
    """

    error: type[UserError] = UserError

    def __init__(self, address: str) -> None:
        """Find the filesystem; nothing is read or written yet.

        Raises:
            UserError: it is not known, or the package that speaks to it is missing.
        """
        import fsspec

        self.address = address.rstrip("/")
        self.scheme = address.partition("://")[0]
        try:
            # Another process may write what this one has listed before.
            self.fs, root = fsspec.url_to_fs(self.address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise self.error(f"cannot use {address}: {one_line(error)}{install_hint(self.scheme)}") from error
        self.root = root.rstrip("/")

    def path(self, name: str) -> str:
        """Return the filesystem's own path of a name."""
        return f"{self.root}/{name}" if name else self.root

    def files(self, under: str = "") -> list[str]:
        """Return the names of all files, or of those below `under`, sorted."""
        return list(self.sizes(under))

    def sizes(self, under: str = "") -> dict[str, int]:
        """Return the names of all files, or of those below `under`, sorted, with their sizes in bytes."""
        with self._explained("read", under):
            found = self.fs.find(self.path(under), detail=True)
        return {str(path)[len(self.root) :].lstrip("/"): int(found[path]["size"]) for path in sorted(found)}

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if it is not there."""
        with self._explained("read", name):
            try:
                return bytes(self.fs.cat_file(self.path(name)))
            except FileNotFoundError:
                return None

    def open(self, name: str) -> Any:
        """Open a file for reading here and there: little is read ahead."""
        with self._explained("read", name):
            return self.fs.open(self.path(name), "rb", block_size=2**18, cache_type="readahead")

    def get(self, name: str, path: Path) -> None:
        """Download a file."""
        with raised_as(self.error), atomic_path(path) as temporary, self._explained("read", name):
            self.fs.get_file(self.path(name), str(temporary))

    def put(self, path: Path, name: str) -> None:
        """Upload a file. A bucket is never created: its name may be a slip of the pen."""
        with self._explained("write", name):
            if self.scheme not in BUCKETS:
                self.fs.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            self.fs.put_file(str(path), self.path(name))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, one after the other, in that order."""
        for name in names:
            with self._explained("write", name):
                self.fs.rm_file(self.path(name))

    def check(self) -> None:
        """Write and remove a small file.

        Raises:
            UserError: no such bucket, no credentials, no connection, no right to write.
        """
        name = f".probe.{os.urandom(6).hex()}"
        with self._explained("write", ""):
            if self.scheme not in BUCKETS:
                self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(self.path(name), b"")
            self.fs.rm_file(self.path(name))

    def push(self, folder: Path, under: str = "", last: Sequence[str] = ()) -> None:
        """Make `under` hold what the local `folder` holds, and nothing else.

        Args:
            last: files of `folder` whose presence says that the rest is there.
        """
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [name for name in names if not name.endswith((TEMPORARY_SUFFIX, ".tmp"))]
        prefix = f"{under}/" if under else ""
        self.remove(f"{prefix}{name}" for name in last if self.read(f"{prefix}{name}") is not None)
        _all(lambda name: self.put(folder / name, prefix + name), [n for n in names if n not in last])
        self.remove(sorted({*self.files(under)} - {prefix + name for name in names}))
        for name in last:
            if name in names:
                self.put(folder / name, prefix + name)

    def pull(self, under: str, folder: Path) -> None:
        """Make the local `folder` hold what `under` holds, and nothing else; it appears when it is whole."""
        prefix = f"{under}/" if under else ""
        with raised_as(self.error), atomic_folder(folder) as temporary:
            _all(lambda name: self.get(name, temporary / name.removeprefix(prefix)), self.files(under))

    @contextmanager
    def _explained(self, what: str, name: str) -> Iterator[None]:
        """Turn the exceptions of a store's client, which has its own, into one line."""
        try:
            yield
        except Exception as error:
            where = f"{self.address}/{name}" if name else self.address
            raise self.error(f"cannot {what} {where}: {one_line(error)}; {REACH}") from error


def _all(work: Callable[[str], None], names: Sequence[str]) -> None:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for _ in pool.map(work, names):
            pass

"""Where a file or folder is: a local path, or an address of any filesystem that fsspec speaks to."""

from pathlib import Path
from typing import cast

from l2p_run.errors import UserError, one_line

Place = str | Path
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Stores that have keys and no folders; their buckets are never created: a name may be a slip of the pen."""
REACH = "check the address, the connection and the credentials"


def is_address(place: Place) -> bool:
    """Return whether a place is the address of a store."""
    return "://" in str(place)


def location(place: Place) -> Path:
    """Return a local path, or a place on any fsspec filesystem, with the methods of `pathlib`.

    Pass addresses as text: `Path("s3://bucket/x")` has lost a slash.

    Raises:
        UserError: the filesystem is not known, or the package that speaks to it is missing.
    """
    scheme, separator, _ = str(place).partition("://")
    if not separator or not isinstance(place, str):
        return check_path(Path(place)) if isinstance(place, str) else place
    if not scheme:
        raise UserError(f"{place!r} names no filesystem; write an address such as s3://bucket/run")
    from upath import UPath

    try:
        # Another process, a Ray worker say, may write what this one has listed before.
        found = UPath(place, use_listings_cache=False)
        _ = found.fs
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot use {place}: {one_line(error)}{install_hint(scheme)}") from error
    return Path(found.path) if found.protocol in ("file", "local") else cast(Path, found)


def install_hint(scheme: str) -> str:
    """Return the end of an error about a store whose client is not installed."""
    return f"; install l2p-run[{scheme}]" if scheme in ("s3", "gs") else ""


def check_path(path: Path) -> Path:
    """Return a path that the operating system can take; NUL would else raise where the file is opened.

    Raises:
        UserError: it holds a NUL character.
    """
    if "\0" in str(path):
        raise UserError(f"the path {str(path)!r} holds a NUL character; leave that out")
    return path

"""Stable identities: the same content gives the same id and seed on any machine and in any run."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from l2p_run import hashes
from l2p_run.errors import raised_as

from l2p_data.errors import DataError

_CHUNK_BYTES = 1 << 20


def digest(*parts: str | int) -> bytes:
    """Return sha256 over an unambiguous encoding of `parts` (so ("ab", "c") and ("a", "bc") differ)."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()


def digest_of(parts: Iterable[str | int]) -> bytes:
    """Return `digest` of any number of parts, of which one at a time is in memory."""
    sha, between = hashlib.sha256(b"["), b""
    for part in parts:
        sha.update(between + json.dumps(part, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        between = b", "
    sha.update(b"]")
    return sha.digest()


def stable_id(*parts: str | int) -> str:
    """Return 16 hexadecimal characters that identify `parts`: 64 bits, ample for millions of rows."""
    return digest(*parts)[:8].hex()


def stable_seed(*parts: str | int) -> int:
    """Return a seed in [0, 2**32) derived from `parts`; it fits every library's seed argument."""
    return int.from_bytes(digest(*parts)[8:12], "big")


def image_seed(prompt_id: str, seed_index: int) -> int:
    """Return the seed of the `seed_index`-th image of a prompt: independent of batch, shard, worker and
    order.
    """
    return stable_seed("image", prompt_id, seed_index)


def is_held_out(prompt: str, modulus: int | None) -> bool:
    """Return whether `prompt` is reserved for evaluation: its sha256, as a big-endian integer, is 0 modulo
    `modulus`."""
    if modulus is None:
        return False
    return int.from_bytes(hashlib.sha256(prompt.encode("utf-8")).digest(), "big") % modulus == 0


def sha256_file(path: Path) -> str:
    """Return hexadecimal sha256 of a file's bytes, all of them read now: never from a cache."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_fingerprint(model: Path) -> str:
    """Return 16 hexadecimal characters that change when a diffusers directory's configs or weights do.

    Every byte counts; large files are hashed once and remembered by path, size and times of change
    (`l2p_run.hashes`). Paths outside the directory do not enter, so a copied model is the same.

    Raises:
        DataError: a file cannot be read.
    """
    return raised_as(DataError)(hashes.of_folder)(model, _counts)[:16]


def earlier_fingerprint(model: Path) -> str:
    """Return what `model_fingerprint` was before it read the middle of weight files."""
    state = hashlib.sha256()
    for path in _counted(model):
        size = path.stat().st_size
        state.update(f"{path.relative_to(model).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            state.update(file.read(_CHUNK_BYTES))
            if size > 2 * _CHUNK_BYTES:
                file.seek(-_CHUNK_BYTES, 2)
            state.update(file.read())
    return state.hexdigest()[:16]


def unread_since(model: Path, since: float) -> Path | None:
    """Return the first file that was written after a time (s since 1970) and that `earlier_fingerprint` does
    not read whole."""
    states = ((path, path.stat()) for path in _counted(model))
    return next(
        (path for path, one in states if one.st_mtime > since and one.st_size > 2 * _CHUNK_BYTES), None
    )


def _counted(model: Path) -> Iterator[Path]:
    for path in sorted(model.rglob("*")):
        relative = path.relative_to(model)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and _counts(relative):
            yield path


def _counts(path: Path) -> bool:
    return path.suffix in {".json", ".safetensors", ".txt", ".model", ".jinja"}

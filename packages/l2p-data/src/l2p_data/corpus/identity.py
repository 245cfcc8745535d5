"""Stable identities: the same content gives the same id and seed on any machine and in any run."""

import hashlib
import json
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def digest(*parts: str | int) -> bytes:
    """sha256 over an unambiguous encoding of `parts` (so ("ab", "c") and ("a", "bc") differ)."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()


def stable_id(*parts: str | int) -> str:
    """16 hexadecimal characters that identify `parts`: 64 bits, ample for millions of rows."""
    return digest(*parts)[:8].hex()


def stable_seed(*parts: str | int) -> int:
    """A seed in [0, 2**32) derived from `parts`; it fits every library's seed argument."""
    return int.from_bytes(digest(*parts)[8:12], "big")


def image_seed(prompt_id: str, seed_index: int) -> int:
    """Seed of the `seed_index`-th image of a prompt: independent of batch, shard, worker and order."""
    return stable_seed("image", prompt_id, seed_index)


def is_held_out(prompt: str, modulus: int | None) -> bool:
    """Whether `prompt` is reserved for evaluation: its sha256, as a big-endian integer, is 0 modulo
    `modulus`."""
    if modulus is None:
        return False
    return int.from_bytes(hashlib.sha256(prompt.encode("utf-8")).digest(), "big") % modulus == 0


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, read in chunks."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def model_fingerprint(model: Path) -> str:
    """16 hexadecimal characters that change when a diffusers directory's configs or weights do.

    Configs are hashed whole; of a weight file its size, its first and its last MiB, because hashing 20 GB
    would cost more than it tells. Paths outside the directory do not enter, so a copied model is the same.
    """
    state = hashlib.sha256()
    for path in sorted(model.rglob("*")):
        relative = path.relative_to(model)
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        if path.suffix not in {".json", ".safetensors", ".txt", ".model", ".jinja"}:
            continue
        size = path.stat().st_size
        state.update(f"{relative.as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            state.update(file.read(_CHUNK_BYTES))
            if size > 2 * _CHUNK_BYTES:
                file.seek(-_CHUNK_BYTES, 2)
            state.update(file.read())
    return state.hexdigest()[:16]

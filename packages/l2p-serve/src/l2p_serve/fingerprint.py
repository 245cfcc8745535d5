"""Which weights painted a picture: 20 characters that change when anything in the model's directory does."""

import hashlib
from pathlib import Path

from l2p_run import hashes

EARLIER_DIGITS = 16
"""Of earlier versions, which did not read the middle of a file: an equal one does not prove equal weights."""
_HASHED = {".json", ".safetensors", ".txt", ".model", ".jinja"}


def weights_hash(model: Path) -> str:
    """Return 20 hexadecimal characters that change when weights, configs or vocabularies of a model do.

    Every byte is read, once: what was found is kept by path, size and time (`l2p_run.hashes`).
    """
    names = [
        path for path in hashes.files_of(model) if len(path.parts) > 1 and path.suffix.lower() in _HASHED
    ]
    return hashes.of_files(model, names)[:20]


def is_made_by(recorded: str, model: Path) -> bool:
    """Return whether a picture that recorded this fingerprint was made by the model.

    Pictures of earlier versions recorded 16 characters, of the first and last MiB of the transformer's files.
    """
    return recorded == (
        weights_hash(model) if len(recorded) > EARLIER_DIGITS else _earlier_fingerprint(model)
    )


def _earlier_fingerprint(model: Path, part: int = 1 << 20) -> str:
    state = hashlib.sha256()
    for path in sorted((model / "transformer").glob("*.safetensors")):
        size = path.stat().st_size
        state.update(f"{size}\0".encode())
        with path.open("rb") as file:
            state.update(file.read(part))
            file.seek(max(part, size - part))
            state.update(file.read())
    return state.hexdigest()[:EARLIER_DIGITS]

"""Which model paints: the one asked for or the miniature that ships, its fingerprint, the source that it came
from, and adapters on top."""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2p_arch.sampling.painter import FoundModel, Sampling, find_pixel_model, sampling_defaults
from l2p_run import hashes
from l2p_run.progress import say

from l2p_generate.errors import GenerateError

__all__ = [
    "Adapter",
    "Sampling",
    "Source",
    "choose_model",
    "find_source",
    "sampling_defaults",
    "weights_hash",
]

_HASHED = {".json", ".safetensors", ".txt", ".model", ".jinja"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The latent model that an L2P model was made from."""

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)  # of its pipeline's call


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA on top of a model."""

    file: str
    sha256: str
    weight: float

    @property
    def name(self) -> str:
        """For people."""
        return Path(self.file).stem


def choose_model(given: Path | None, components: Path | None = None, *, on_import: Any = None) -> FoundModel:
    """The model asked for; without one the trained pixel miniature that l2p-mini ships.

    Raises:
        GenerateError: no model was given and l2p-mini is not installed.
        ArchError: there is no model, or it is damaged.
    """
    if given is not None:
        return find_pixel_model(given, components, on_import=on_import)
    try:
        from l2p_mini import paths
    except ImportError:
        raise GenerateError(
            "no --model was given, and the miniature that would paint instead is not installed; give --model"
            " PATH, or install l2p-mini"
        ) from None
    folder = Path(paths.__file__).parent / "pixel_model"
    if not folder.is_dir():
        raise GenerateError("no --model was given, and l2p-mini ships no trained one here; give --model PATH")
    return find_pixel_model(folder)


def check_size(model: FoundModel, sampling: Sampling, *, free: bool) -> None:
    """Refuses a size before the weights are loaded; what is painted into a picture is `free` to have any."""
    if not free:
        model.check_size(sampling.height, sampling.width)


def announce_import(out: Path) -> None:
    """A single file is copied once; that takes disk and time, so say it."""
    say(f"importing the single file, once, to {out}")


def find_source(path: Path) -> Source | None:
    """The source of the run that `path` is, or that the model directory `path` lies in; None if it is not at
    hand."""
    run = next(
        (folder for folder in (path, *path.absolute().parents[:2]) if (folder / "config.toml").is_file()),
        None,
    )
    if run is None:
        return None
    try:
        table = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))["source"]
        model = Path(table["model"])
        options = dict(table.get("pipeline_kwargs", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not (model / "model_index.json").is_file():
        return None
    names = ("num_inference_steps", "guidance_scale", "max_sequence_length")
    return Source(path=model, options={name: table[name] for name in names if name in table} | options)


def weights_hash(model: Path) -> str:
    """20 hexadecimal characters that change when weights, configs or vocabularies of a model do.

    Every byte is read, once: what was found is kept by path, size and time (`l2p_run.hashes`).
    """
    names = [
        path for path in hashes.files_of(model) if len(path.parts) > 1 and path.suffix.lower() in _HASHED
    ]
    return hashes.of_files(model, names)[:20]


def is_made_by(recorded: str, model: Path) -> bool:
    """Whether a picture that recorded this fingerprint was made by the model.

    Pictures of earlier versions recorded 16 characters, of the first and last MiB of the transformer's files.
    """
    return recorded == (weights_hash(model) if len(recorded) > 16 else _earlier_fingerprint(model))


def _earlier_fingerprint(model: Path, part: int = 1 << 20) -> str:
    state = hashlib.sha256()
    for path in sorted((model / "transformer").glob("*.safetensors")):
        size = path.stat().st_size
        state.update(f"{size}\0".encode())
        with path.open("rb") as file:
            state.update(file.read(part))
            file.seek(max(part, size - part))
            state.update(file.read())
    return state.hexdigest()[:16]

"""Finds a model, how it likes to be sampled, and the source that it came from."""

import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from l2p_generate.errors import GenerateError

DEFAULTS_FILE = "sampling.json"
"""Beside model_index.json: the fields of `Sampling` that suit the model. l2p-transfer writes it."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. The defaults are those of the released 1K model, for models that bring none of their
    own."""

    height: int = 1024  # px
    width: int = 1024  # px
    num_inference_steps: int = 30
    guidance_scale: float = 2.0
    noise_shift: float | None = None  # None: the model's scheduler decides
    distilled_guidance_scale: float | None = None  # that FLUX [dev] embeds; None: its family's default


@dataclass(frozen=True, kw_only=True)
class Source:
    """The latent model that an L2P model was made from."""

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)  # of its pipeline's call


def find_model(
    path: Path, components: Path | None = None, *, on_import: Callable[[Path], None] | None = None
) -> Path:
    """The model directory that `path` is, that the run directory `path` holds, or that the single file `path`
    is turned into.

    Args:
        components: for a single file, the pipeline directory with its text encoder, tokenizer and scheduler.
        on_import: called with the directory that a single file is about to be copied to.

    Raises:
        GenerateError, ArchError: there is none.
        PermissionError: a file of it is not for this user.
    """
    if path.is_file():
        return _import_file(path, components, on_import)
    for candidate in (path, path / "model", path / "train" / "model"):
        index = candidate / "model_index.json"
        if index.is_file():
            if json.loads(index.read_text(encoding="utf-8")).get("_class_name") != "L2PPipeline":
                raise GenerateError(
                    f"{candidate} is no L2P model (a latent one?); make one with l2p-transfer"
                )
            _open_all(candidate)
            return candidate
    if not path.exists():
        raise GenerateError(
            f"--model {path} does not exist; give a run directory, a model directory or a single file"
        )
    if (path / "config.toml").is_file():
        raise GenerateError(f"the run {path} has no trained model yet; run l2p-transfer again to finish it")
    raise GenerateError(
        f"--model {path} holds no model_index.json; give a run directory or a model directory"
    )


def _open_all(model: Path) -> None:
    """Libraries say no such file, or nothing, of one that they may not open."""
    for path in model.rglob("*"):
        if path.is_file():
            path.open("rb").close()


def _import_file(file: Path, components: Path | None, on_import: Callable[[Path], None] | None) -> Path:
    """A published single file as a model directory, made once and kept in the user's cache."""
    from l2p_arch import identify, import_public

    if components is None:
        raise GenerateError(
            f"{file} ({identify(file)}) brings no text encoder; add --components with the directory of the"
            " pipeline that it was made from, for example Z-Image-Turbo"
        )
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    identity = hashlib.sha256(f"{_fingerprint([file])} {components.resolve()}".encode()).hexdigest()[:12]
    out = base / "l2p" / "imported" / f"{file.stem}-{identity}"
    if not (out / "model_index.json").is_file():
        if on_import:
            on_import(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        import_public(file, components, out)
    return out


def sampling_defaults(model: Path) -> Sampling:
    """What the model's own file says, completed by the general defaults.

    Raises:
        GenerateError: the file is damaged.
    """
    path = model / DEFAULTS_FILE
    if not path.is_file():
        return Sampling()
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(Sampling)}
        return Sampling(**{key: value for key, value in values.items() if key in names})
    except (ValueError, TypeError, AttributeError) as error:
        raise GenerateError(f"{path} is damaged ({error}); delete it to use general defaults") from None


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
        table = tomllib.loads((run / "config.toml").read_text(encoding="utf-8")).get("source", {})
        model = Path(table["model"])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None
    if not (model / "model_index.json").is_file():
        return None
    names = ("num_inference_steps", "guidance_scale", "max_sequence_length")
    options = {name: table[name] for name in names if name in table}
    return Source(path=model, options=options | dict(table.get("pipeline_kwargs", {})))


def weights_fingerprint(model: Path) -> str:
    """16 hexadecimal characters that change when the transformer's weights do.

    Of each file its size and its first and last MiB: hashing 12 GB before every image would cost more than it
    tells.
    """
    files = sorted((model / "transformer").glob("*.safetensors"))
    return _fingerprint(files)


def _fingerprint(files: list[Path], part: int = 1 << 20) -> str:
    state = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        state.update(f"{size}\0".encode())
        with path.open("rb") as file:
            state.update(file.read(part))
            file.seek(max(part, size - part))
            state.update(file.read())
    return state.hexdigest()[:16]

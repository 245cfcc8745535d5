"""What the stages read from outside of the run, by content: a file that changes makes its stage run again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from l2p_run import hashes

from l2p_transfer.config import Config

_OF_A_MODEL = {".json", ".safetensors", ".txt", ".model", ".jinja"}
"""Suffixes of what decides how a model computes."""


def contents(stage: str, config: Config) -> dict[str, Any]:
    """The sha256 of everything that a stage reads beside its settings and what earlier stages left; None for
    what is not there, which a check of its own says.

    Large files are hashed once and remembered by path, size and times.

    Raises:
        UserError: something is there and cannot be read.
    """
    return (
        {name: of(path) for name, path, of in _READ[stage](config) if path is not None}
        if stage in _READ
        else {}
    )


def newest(stage: str, config: Config) -> float:
    """When the youngest file that a stage reads was written, in s since 1970; 0 where it reads none.

    Raises:
        UserError: something is there and cannot be looked at.
    """
    times = [0.0]
    for _, path, _ in _READ[stage](config) if stage in _READ else []:
        if path is not None and path.is_dir():
            names = [name for name in hashes.files_of(path) if name.suffix in _OF_A_MODEL]
            times += [(path / name).stat().st_mtime for name in names]
        elif path is not None and path.is_file():
            times.append(path.stat().st_mtime)
    return max(times)


def _file(path: Path) -> str | None:
    return hashes.of_file(path) if path.is_file() else None


def _model(path: Path) -> str | None:
    return hashes.of_folder(path, lambda name: name.suffix in _OF_A_MODEL) if path.is_dir() else None


Read = tuple[str, Path | None, Callable[[Path], str | None]]


def _prompts(config: Config) -> list[Read]:
    section = config.prompts
    by_engine: Mapping[str, list[Read]] = {
        "grammar": [("grammar", section.grammar, _file)],
        "file": [("file", section.file, _file)],
        "openai": [("taxonomy", section.taxonomy, _file)],
        "vllm": [("taxonomy", section.taxonomy, _file), ("llm", section.llm, _model)],
    }
    return by_engine[section.engine]


def _source(config: Config) -> list[Read]:
    return [("source", config.source.model, _model)]


def _judges(config: Config) -> list[Read]:
    section = config.evaluate
    return [
        ("metadata", section.metadata, _file),
        ("detector_model", section.detector_model, _model),
        ("color_model", section.color_model, _model),
    ]


_READ: Mapping[str, Callable[[Config], list[Read]]] = {
    "prompts": _prompts,
    "images": _source,
    "evaluation": _judges,
}

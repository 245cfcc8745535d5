"""What the stages read from outside of the run, by content: a file that changes makes its stage run again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from l2p_run import hashes

from l2p_transfer.config import Config


def contents(stage: str, config: Config) -> dict[str, Any]:
    """Return the sha256 of everything that a stage reads beside its settings and what earlier stages left;
    None for what is not there, which a check of its own says.

    Large files are hashed once and remembered by path, size and times.

    Raises:
        UserError: something is there and cannot be read.
    """
    read = _READ[stage](config) if stage in _READ else {}
    return {name: _content(path, name) for name, path in read.items() if path is not None}


def newest(stage: str, config: Config) -> float:
    """Return when the youngest file that a stage reads was written, in s since 1970; 0 where it reads none.

    Raises:
        UserError: something is there and cannot be looked at.
    """
    paths = (_READ[stage](config) if stage in _READ else {}).values()
    return max((hashes.written(path) for path in paths if path is not None), default=0.0)


def _content(path: Path, name: str) -> str | None:
    if name in _MODELS:
        return hashes.of_model(path) if path.is_dir() else None
    return hashes.of_file(path) if path.is_file() else None


def _prompts(config: Config) -> Mapping[str, Path | None]:
    section = config.prompts
    by_engine = {
        "grammar": {"grammar": section.grammar},
        "file": {"file": section.file},
        "openai": {"taxonomy": section.taxonomy},
        "vllm": {"taxonomy": section.taxonomy, "llm": section.llm},
    }
    return by_engine[section.engine]


def _judges(config: Config) -> Mapping[str, Path | None]:
    return {name: getattr(config.evaluate, name) for name in ("metadata", "detector_model", "color_model")}


_MODELS = ("llm", "source", "detector_model", "color_model")
_READ: Mapping[str, Callable[[Config], Mapping[str, Path | None]]] = {
    "prompts": _prompts,
    "images": lambda config: {"source": config.source.model},
    "evaluation": _judges,
}

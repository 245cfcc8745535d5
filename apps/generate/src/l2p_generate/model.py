"""Finds a model and how it likes to be sampled."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from l2p_generate.errors import GenerateError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. The defaults are those of the released 1K model, for models that bring none of their
    own."""

    height: int = 1024  # px
    width: int = 1024  # px
    num_inference_steps: int = 30
    guidance_scale: float = 2.0
    noise_shift: float | None = None  # None: the model's scheduler decides


DEFAULTS_FILE = "sampling.json"
"""Beside model_index.json: the fields of `Sampling` that suit the model. l2p-transfer writes it."""


def find_model(path: Path) -> Path:
    """The model directory that `path` is, or that the run directory `path` holds.

    Raises:
        GenerateError: there is none.
    """
    for candidate in (path, path / "model", path / "train" / "model"):
        index = candidate / "model_index.json"
        if index.is_file():
            if json.loads(index.read_text(encoding="utf-8")).get("_class_name") != "L2PPipeline":
                raise GenerateError(
                    f"{candidate} is no L2P model (a latent one?); make one with l2p-transfer"
                )
            return candidate
    if not path.exists():
        raise GenerateError(f"--model {path} does not exist; give a run directory or a model directory")
    if (path / "config.toml").is_file():
        raise GenerateError(f"the run {path} has no trained model yet; run l2p-transfer again to finish it")
    raise GenerateError(
        f"--model {path} holds no model_index.json; give a run directory or a model directory"
    )


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

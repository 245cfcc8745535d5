"""Configs of l2p-transfer that tests share, and a run directory with an untrained L2P model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from l2p_mini.paths import EVALUATION_METADATA, GRAMMAR

MINIMAL: dict[str, Any] = {
    "run": {"output": "out"},
    "source": {"model": "source"},
    "prompts": {"grammar": str(GRAMMAR)},
    "images": {"width": 64, "height": 64},
    "evaluate": {"metadata": str(EVALUATION_METADATA)},
}
TINY: dict[str, Any] = {
    "run": {"output": "run"},
    "source": {"num_inference_steps": 1, "max_sequence_length": 32},
    "prompts": {"grammar": str(GRAMMAR), "count": 4},
    "images": {"seeds_per_prompt": 1, "width": 64, "height": 64, "batch_size": 4, "workers": 0},
    "surgery": {"head_channels": [8, 8, 16, 16]},
    "train": {
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "trainable": 1,
        "processes": 1,
        "precision": "fp32",
        "log_every": 1,
        "sample_every": 1,
        "sample_count": 2,
        "sample_steps": 1,
    },
    "evaluate": {
        "metadata": "metadata.jsonl",
        "images_per_prompt": 1,
        "num_inference_steps": 1,
        "noise_shift": 3.0,
        "workers": 0,
    },
}


@pytest.fixture
def minimal_config(tmp_path: Path) -> Path:
    """The least that a config must say, in a directory of its own. Its source does not exist."""
    path = tmp_path / "configs" / "least.toml"
    path.parent.mkdir()
    path.write_text(tomli_w.dumps(MINIMAL))
    return path


@pytest.fixture(scope="session")
def write_tiny_run(untrained_source: Path) -> Callable[..., None]:
    """Writes `tiny.toml`, every stage in a few steps, and its two evaluation prompts into a folder.

    Keywords change its tables, as in `train={"steps": 3}`; a value of None leaves the key to its default.
    """

    def write(folder: Path, **tables: dict[str, Any]) -> None:
        config = {name: TINY.get(name, {}) | tables.get(name, {}) for name in {**TINY, **tables}}
        config["source"]["model"] = str(untrained_source)
        kept = {
            name: {key: value for key, value in table.items() if value is not None}
            for name, table in config.items()
        }
        (folder / "tiny.toml").write_text(tomli_w.dumps(kept))
        rows = EVALUATION_METADATA.read_text().splitlines()
        (folder / "metadata.jsonl").write_text(f"{rows[0]}\n{rows[-1]}\n")

    return write


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory: pytest.TempPathFactory, untrained_source: Path) -> Path:
    """As l2p-transfer leaves it, without a training: config.toml and model/."""
    from l2p_arch import convert

    run = tmp_path_factory.mktemp("untrained") / "run"
    convert(untrained_source, run / "model", head_channels=(8, 8, 16, 16))
    sampling = {
        "height": 64,
        "width": 64,
        "num_inference_steps": 3,
        "guidance_scale": 1.5,
        "noise_shift": 3.0,
    }
    (run / "model" / "sampling.json").write_text(json.dumps(sampling))
    (run / "config.toml").write_text(
        f'[source]\nmodel = "{untrained_source}"\nnum_inference_steps = 2\nmax_sequence_length = 32\n'
    )
    return run

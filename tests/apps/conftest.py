"""A run directory with an untrained L2P model, for the tests of l2p-generate."""

import json
from pathlib import Path

import pytest


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

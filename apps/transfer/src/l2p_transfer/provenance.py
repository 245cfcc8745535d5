"""What a run was made with: versions, hashes, the command, the machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2p_run import hashes, provenance

from l2p_transfer.config import Config

PACKAGES = (
    "l2p-run",
    "l2p-arch",
    "l2p-data",
    "l2p-train",
    "l2p-eval",
    "l2p-transfer",
    "torch",
    "diffusers",
    "transformers",
    "deepspeed",
    "ray",
    "torchmetrics",
)


def collect_provenance(config: Config, command: Sequence[str]) -> dict[str, Any]:
    """Everything about this run that its config does not say."""
    found = provenance.collect(command, PACKAGES, Path(__file__).parent)
    return found | {"config_sha256": hashes.of_settings(config.to_tables())}

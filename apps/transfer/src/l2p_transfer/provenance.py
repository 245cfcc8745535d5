"""What a run was made with: versions, hashes, the command, the machine."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2p_transfer.config import Config
from l2p_transfer.memory import usable_cores

PACKAGES = (
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
    import psutil

    return {
        "command": " ".join(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_sha256": hashlib.sha256(json.dumps(config.to_tables(), sort_keys=True).encode()).hexdigest(),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": usable_cores(),
            "memory_bytes": psutil.virtual_memory().total,
            "gpus": _gpus(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree this runs from, with "+" when files differ from it; None for an installed
    wheel.
    """
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

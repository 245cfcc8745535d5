"""What a result was made with: the command, the versions, the commit, the machine."""

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2p_run.usage import memory_of_machine, usable_cores


def collect(command: Sequence[str], packages: Sequence[str], source: Path | None = None) -> dict[str, Any]:
    """Return JSON values; the command as it was typed.

    Args:
        packages: distributions whose versions are noted, as far as they are installed.
        source: a folder of the source tree that runs; the commit is that of its checkout.
    """
    return {
        "command": " ".join(command),
        "started": now(),
        "commit": commit_of(source or Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := _version(name))},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": usable_cores(),
            "memory_bytes": memory_of_machine(),
            "gpus": _gpus(),
        },
    }


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit_of(folder: Path) -> str | None:
    """Commit of the checkout that a folder lies in, with "+" when files differ from it; None for an installed
    wheel."""
    head = _git("rev-parse", "--short=12", "HEAD", folder=folder)
    if not head:
        return None
    return head + ("+" if _git("status", "--porcelain", "--untracked-files=no", folder=folder) else "")


def _git(*arguments: str, folder: Path) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _gpus() -> list[str]:
    """Return the names of the GPUs that torch sees; none where it is not installed."""
    if "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
        return []
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

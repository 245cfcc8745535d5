"""Safetensors files that others may read as far as the user's umask says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from l2p_train.errors import TrainError


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the mode that `open` gives; `save_file` makes it its owner's alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # asking for the umask would change it for the other threads
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode & 0o777)


def open_tensors(path: Path) -> Any:
    """Return `safetensors.safe_open` of a file: through a memory map, or by plain reads where
    L2P_DISABLE_MMAP says so (network and FUSE mounts).

    Raises:
        TrainError: it is no safetensors file, or not whole.
    """
    from l2p_arch.files.mapping import mmap_disabled
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", **({"backend": "pread"} if mmap_disabled() else {}))
    except SafetensorError as error:
        raise TrainError(
            f"{path} is damaged or no safetensors file ({error}); write or fetch it again"
        ) from error

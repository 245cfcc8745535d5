"""Whether weights are loaded through memory maps, which some network and FUSE mounts serve badly, or by plain
reads. One name everywhere, diffusers' and transformers' own: `disable_mmap`.

Merging, quantising, exporting and importing read plainly in any case; this is for what libraries load.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from l2p_arch.files.loadable import components_of, read_index
from l2p_arch.files.tensor_files import variant

VARIABLE = "L2P_DISABLE_MMAP"
"""The environment variable that says it for a process and for all that it starts: 1 for plain reads."""
_inside: ContextVar[bool | None] = ContextVar("disable_mmap", default=None)


@contextmanager
def memory_maps(*, disabled: bool | None) -> Iterator[None]:
    """Load with or without memory maps inside the block; None changes nothing."""
    token = _inside.set(_inside.get() if disabled is None else disabled)
    try:
        yield
    finally:
        _inside.reset(token)


def mmap_disabled(disable_mmap: bool | None = None) -> bool:
    """Return what is given, or else what a `memory_maps` around it or the environment variable says."""
    for said in (disable_mmap, _inside.get()):
        if said is not None:
            return said
    return os.environ.get(VARIABLE, "").strip().lower() not in ("", "0", "false", "no")


def loading_options(disable_mmap: bool | None = None) -> dict[str, bool]:
    """Return what to add to a `from_pretrained`: nothing where maps are used, so that older libraries take
    it.
    """
    return {"disable_mmap": True} if mmap_disabled(disable_mmap) else {}


def unmapped(directory: Path | str, *, dtype: Any = None, disable_mmap: bool | None = None) -> dict[str, Any]:
    """Return what to hand to a pipeline's `from_pretrained` where memory maps are switched off, else nothing.

    diffusers hands the switch on to its own networks only, so those of transformers are loaded here.

    Args:
        directory: of the pipeline.
        dtype: of its networks; None: float32, as diffusers has it.
        disable_mmap: None: as L2P_DISABLE_MMAP says.
    """
    options = loading_options(disable_mmap)
    if not options:
        return {}
    import torch
    import transformers

    networks: dict[str, Any] = {}
    for name, entry in components_of(read_index(Path(directory))).items():
        kind: Any = getattr(transformers, entry[1], None) if entry[0] == "transformers" else None
        is_network = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        if not is_network:
            continue
        folder = Path(directory) / name
        networks[name] = kind.from_pretrained(
            folder,
            dtype=dtype or torch.float32,
            variant=variant(folder, "model"),
            local_files_only=True,
            use_safetensors=True,
            **options,
        )
    return {**options, **networks}

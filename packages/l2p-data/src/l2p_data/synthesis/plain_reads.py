"""A source on a network or FUSE mount: its weights by plain reads instead of memory maps, which some such
mounts serve badly. L2P_DISABLE_MMAP=1 says so, in every process that paints."""

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "L2P_DISABLE_MMAP"


def unmapped(model: Path, dtype: Any) -> dict[str, Any]:
    """Return what to hand to `DiffusionPipeline.from_pretrained` where memory maps are switched off, else
    nothing.

    diffusers hands the switch on to its own networks only, so those of transformers are loaded here.
    """
    if os.environ.get(VARIABLE, "").strip().lower() in ("", "0", "false", "no"):
        return {}
    import transformers

    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    networks: dict[str, Any] = {}
    for name, (library, class_name) in entries.items():
        kind: Any = getattr(transformers, str(class_name), None) if library == "transformers" else None
        is_network = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        if is_network:
            networks[name] = kind.from_pretrained(
                model / name, dtype=dtype, local_files_only=True, use_safetensors=True, disable_mmap=True
            )
    return {"disable_mmap": True, **networks}

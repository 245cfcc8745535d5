"""A model straight from a published single file, without a directory in between."""

from pathlib import Path
from typing import Any

import torch

from l2p_arch.files.public_layout import plan_import
from l2p_arch.files.tensor_files import StoredTensor


def read_single_file(file: Path | str, dtype: torch.dtype | None = None) -> Any:
    """The `L2PTransformer` of a published single file, in evaluation mode.

    Args:
        file: safetensors file, recognised by its content.
        dtype: of the weights; None keeps the file's.
    """
    from l2p_arch.model import L2PTransformer

    plan, config, _ = plan_import(Path(file))
    with torch.device("meta"):
        model = L2PTransformer(**config)
    state = {}
    for tensor in plan:
        value = tensor.origin.read() if isinstance(tensor.origin, StoredTensor) else tensor.origin()
        state[tensor.name] = value if dtype is None else value.to(dtype)
    model.load_state_dict(state, assign=True)
    return model.eval()

"""A model straight from a published single file, without a directory in between."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from l2p_arch.files.public_layout import read_published
from l2p_arch.files.tensor_files import StoredTensor


def read_single_file(kind: Callable[..., Any], file: Path | str, dtype: torch.dtype | None = None) -> Any:
    """Return the model of a published single file, in evaluation mode.

    Args:
        kind: `L2PTransformer`, which knows this module and so is handed in.
        file: safetensors file, recognised by its content.
        dtype: of the weights; None keeps the file's.
    """
    published = read_published(Path(file))
    with torch.device("meta"):
        model = kind(**published.config)
    state = {}
    for tensor in published.plan(model):
        value = tensor.origin.read() if isinstance(tensor.origin, StoredTensor) else tensor.origin()
        state[tensor.name] = value if dtype is None else value.to(dtype)
    model.load_state_dict(state, assign=True)
    return model.eval()

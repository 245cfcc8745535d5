"""A weight file that becomes shorter after its header was read is named; nothing counts as zeros."""

from pathlib import Path

import pytest
import torch
from l2p_arch import ArchError
from l2p_arch.files.delta import _hash
from l2p_arch.files.tensor_files import StoredTensor, read_header
from safetensors.torch import save_file


@pytest.fixture
def cut_off(tmp_path: Path) -> StoredTensor:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.ones(64, 64)}, path)
    stored = read_header(path)[0]["weight"]
    with path.open("r+b") as file:
        file.truncate(stored.start + 100)
    return stored


def test_a_tensor_is_not_filled_up_with_zeros(cut_off: StoredTensor) -> None:
    with pytest.raises(ArchError, match="ended within weight; fetch or write it again"):
        cut_off.read()


def test_its_hash_ends(cut_off: StoredTensor) -> None:
    with pytest.raises(ArchError, match="ended within weight; fetch or write it again"):
        _hash([cut_off])

"""Which process looks at which file of a checkpoint, and how long processes wait for each other meanwhile."""

import json
from pathlib import Path

import pytest
import torch
from l2p_run.hashes import of_file
from l2p_train import TrainError
from l2p_train.run.checkpoint import Checkpoint, verify, verify_together
from l2p_train.zero.engine import COLLECTIVE_TIMEOUT, distributed


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Four files, of which the second is damaged."""
    names = [f"rank-{rank:03d}.safetensors" for rank in range(4)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    state = {"files": {name: of_file(tmp_path / name) for name in names}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    (tmp_path / names[1]).write_bytes(b"damaged")
    return Checkpoint(tmp_path, 1, state)


@pytest.mark.parametrize(("rank", "finds_it"), [("0", False), ("1", True)])
def test_the_processes_of_a_machine_share_its_files(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, rank: str, finds_it: bool
):
    """`test_launcher.py` has two processes, which tell each other."""
    with distributed():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", rank)
        if finds_it:
            with pytest.raises(TrainError, match=r"rank-001.safetensors is missing or damaged"):
                verify_together(checkpoint)
        else:
            verify_together(checkpoint)


def test_a_process_that_does_not_know_its_neighbours_looks_at_all_files(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    """The deepspeed launcher says LOCAL_RANK, and not of how many."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with distributed():
        monkeypatch.setenv("LOCAL_RANK", "2")
        with pytest.raises(TrainError, match=r"rank-001.safetensors is missing or damaged"):
            verify_together(checkpoint)
    with pytest.raises(TrainError, match=r"rank-001.safetensors is missing or damaged"):
        verify(checkpoint)


def test_processes_wait_longer_for_each_other_than_the_libraries_would():
    with distributed():
        group = torch.distributed.group.WORLD
        timeout = group._get_backend(torch.device("cpu")).options._timeout
    assert timeout == COLLECTIVE_TIMEOUT

"""Gradients and updates between processes through shared memory: gloo's bits, and nothing left over."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from l2p_train import TrainConfig
from safetensors.torch import load_file

SHARED = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="shared memory is a file system on Linux only")

# Means of bfloat16 and float32 tensors against gloo's float32 sums, and shares of unequal length.
WORK = """
import sys, torch
from pathlib import Path
from l2p_train.zero import shared_memory
shared_memory.SHARED = Path(sys.argv[1])
torch.distributed.init_process_group("gloo")
rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
shared = shared_memory.share_memory(4 * 40)
assert shared is not None
generator = torch.Generator().manual_seed(rank)
for turn in range(20):
    for dtype in (torch.bfloat16, torch.float32):
        shapes = [(3, 5), (2, 2, 2, 2), (7,)]
        tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        tensors[1] = tensors[1].contiguous(memory_format=torch.channels_last)
        wanted = []
        for tensor in tensors:
            total = tensor.float() / count
            torch.distributed.all_reduce(total)
            wanted.append(total.to(dtype))
        shared.average(tensors)
        for one, other in zip(tensors, wanted, strict=True):
            if count == 2:  # one sum of two numbers: no order to differ in
                assert torch.equal(one, other), (turn, dtype)
            else:
                torch.testing.assert_close(one, other)
    sizes = [4 * one for one in range(count)]  # process 0 has nothing
    mine = [torch.full((2, 2), float(10 * rank + part)) for part in range(rank)]
    for one, flat in enumerate(shared.gather([part.bfloat16() for part in mine], sizes)):
        assert flat.tolist() == [10.0 * one + part for part in range(one) for _ in range(4)], (turn, one)
torch.distributed.destroy_process_group()  # gloo's threads may abort a process that ends without it
print("done", rank)
"""


def run(processes: int, work: str, folder: Path, **more: str) -> list[subprocess.CompletedProcess[str]]:
    from l2p_train.machine.processes import process_environments

    started = [
        subprocess.Popen(
            [sys.executable, "-c", work, str(folder)],
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in process_environments(processes, on_gpus=False)
    ]
    outputs = [one.communicate(timeout=900) for one in started]
    return [
        subprocess.CompletedProcess(one.args, one.returncode, *output)
        for one, output in zip(started, outputs, strict=True)
    ]


@pytest.mark.parametrize("processes", [2, 3])
def test_means_are_those_of_gloo_and_shares_of_any_length_arrive(processes: int, tmp_path: Path) -> None:
    for rank, ended in enumerate(run(processes, WORK, tmp_path)):
        assert ended.returncode == 0, ended.stderr[-2000:]
        assert f"done {rank}" in ended.stdout
    assert not list(tmp_path.iterdir())  # a crash can leave nothing: the name is gone once all have it


def test_processes_of_other_machines_and_a_full_memory_leave_it_to_gloo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from l2p_train.zero import shared_memory

    work = """
import torch
from l2p_train.zero import shared_memory
torch.distributed.init_process_group("gloo")
print("shared" if shared_memory.share_memory(SIZE) else "gloo")
torch.distributed.destroy_process_group()
"""
    for size, more, said in (
        ("64", {}, "shared"),
        ("64", {"LOCAL_WORLD_SIZE": "1"}, "gloo"),  # a node of two
        (str(shared_memory.MOST_BYTES), {}, "gloo"),
    ):
        for ended in run(2, work.replace("SIZE", size), tmp_path, **more):
            assert ended.stdout.split() == [said], (size, more, ended.stderr[-1000:])

    def no_room(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shared_memory.os, "posix_fallocate", no_room)
    monkeypatch.setattr(shared_memory, "SHARED", tmp_path)
    assert shared_memory._file_of(4096) is None and not list(tmp_path.iterdir())


def test_two_processes_take_the_same_steps_to_the_bit_as_through_gloo(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    work = """
import atexit, sys, torch
from l2p_train.__main__ import main
# What is registered first runs last: by then the group must be left, or gloo's threads may abort the process.
atexit.register(lambda: print("group at the end:", torch.distributed.is_initialized()))
sys.exit(main([sys.argv[1]]))
"""
    found = {}
    for name, more in (("shared", {}), ("gloo", {"LOCAL_WORLD_SIZE": "1"})):  # 1: as on two machines
        config = TrainConfig(
            model=tiny_model,
            corpus=tiny_corpus,
            output=tmp_path / name,
            steps=3,
            batch_size=4,
            zero_stage=0,
            optimizer="muon",
            trainable=1,
            learning_rate=1e-3,
            ema_decay=0.9,
            log_every=1,
            checkpoint_every=0,
            sample_every=0,
            tensorboard=False,
        )
        (tmp_path / f"{name}.json").write_text(json.dumps(config.to_dict()))
        for ended in run(2, work, tmp_path / f"{name}.json", **more):
            assert ended.returncode == 0, ended.stderr[-2000:]
            assert "group at the end: False" in ended.stdout
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses = [row["loss"] for row in map(json.loads, lines) if row["event"] == "step"]
        weights = load_file(next((tmp_path / name / "model" / "transformer").glob("*.safetensors")))
        found[name] = losses, weights
    assert len(found["shared"][0]) == 3 and found["shared"][0] == found["gloo"][0]
    assert all(torch.equal(one, found["gloo"][1][key]) for key, one in found["shared"][1].items())


def test_a_process_without_a_matrix_takes_part_without_shared_memory(tmp_path: Path) -> None:
    work = """
import torch
from l2p_train.zero.muon import _orthogonalise_all, orthogonalise
torch.distributed.init_process_group("gloo")
matrix = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
(found,) = _orthogonalise_all([matrix])
assert torch.equal(found.view(4, 8), orthogonalise(matrix).view(4, 8))
assert _orthogonalise_all([]) == []
torch.distributed.destroy_process_group()
"""
    for ended in run(2, work, tmp_path):
        assert ended.returncode == 0, ended.stderr[-1000:]

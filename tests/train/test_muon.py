"""Muon against PyTorch's own, AdamW beside it, and its refusal of cut-up weights."""

import math

import pytest
import torch
from l2p_train import TrainConfig, TrainError
from l2p_train.zero.muon import Muon, orthogonalise


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(chosen: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in chosen:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def matrix_of(shape: tuple[int, int], values: torch.Tensor) -> torch.Tensor:
    """A matrix with random directions and these singular values."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(side, len(values), generator=generator).double())[0] for side in shape
    )
    return ((left * values) @ right.T).float()


@pytest.mark.parametrize("shape", [(8, 8), (48, 48), (128, 128), (16, 64), (64, 16), (12, 512), (256, 64)])
@pytest.mark.parametrize("condition", [1, 1e2, 1e4, 1e6])
def test_singular_values_become_about_one_and_the_directions_stay(shape, condition):
    values = torch.logspace(0, -math.log10(condition), min(shape), dtype=torch.float64)
    matrix = matrix_of(shape, values)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    inside = left.T @ orthogonalise(matrix).double() @ right.T
    found = inside.diagonal()
    assert found[values >= 0.002 * values.norm()].min() > 0.67
    assert torch.linalg.matrix_norm(inside, ord=2) < 1.21
    if condition <= 1e2:  # beyond it bfloat16 rounds the smallest directions away
        assert (inside - torch.diag(found)).abs().max() < 0.08


def test_the_range_of_the_singular_values_is_no_wider_than_it_says():
    matrix = torch.diag(torch.tensor([1.0] + [0.0] * 5 + [0.002, 0.001]))
    nothing, *_, least, below = orthogonalise(matrix).diagonal()[1:].tolist()
    assert nothing == 0
    assert least > 0.67
    assert below == pytest.approx(0.47, abs=0.02)
    assert orthogonalise(torch.zeros(8, 8)).abs().max() == 0


def test_matrices_take_pytorchs_own_muon_steps_and_the_rest_adamws():
    shapes = ((32, 64), (64, 32), (16,), (3, 16, 1, 1))
    ours, theirs = parameters(*shapes), parameters(*shapes)
    assert [Muon.takes(parameter) for parameter in ours] == [True, True, False, False]
    optimizer = Muon(
        [{"params": ours[:2], "muon": True}, {"params": ours[2:], "muon": False}], lr=0.02, weight_decay=0.1
    )
    oracles = (
        torch.optim.Muon(theirs[:2], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(theirs[2:], lr=0.02, weight_decay=0.1),
    )
    for step in range(3):
        for chosen in (ours, theirs):
            set_gradients(chosen, seed=step)
        optimizer.step()
        for oracle in oracles:
            oracle.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    assert len(optimizer.param_groups) == 2


def test_a_convolution_is_the_matrix_of_its_rows_whatever_its_memory_layout():
    ours, flat = parameters((32, 16, 3, 3), (32, 144))
    flat.data = ours.detach().flatten(1).clone()
    ours.data = ours.data.contiguous(memory_format=torch.channels_last)
    set_gradients([flat], seed=1)
    ours.grad = flat.grad.view(ours.shape).contiguous(memory_format=torch.channels_last)
    for parameter in (ours, flat):
        Muon([{"params": [parameter], "muon": True}], lr=0.1).step()
    torch.testing.assert_close(ours.flatten(1), flat)


def test_sharded_weights_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(TrainError, match="set zero_stage = 0"):
        TrainConfig(model=tmp_path, corpus=tmp_path, output=tmp_path, optimizer="muon", zero_stage=1)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(TrainError, match=r"it must be in \[0, 1\)"):
        Muon([{"params": parameters((8, 8)), "muon": True}], momentum=momentum)

"""What tests of one family and of all of them share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def _velocity_on_gpu(model: nn.Module, samples: Sequence[Mapping[str, Tensor]], sigma: str) -> Tensor:
    """What a forward returns on a GPU that is not there, with sigma on a device of its own.

    Tensors without data know their device, and what would mix two of them is refused as on a GPU. Half of the
    conditioning comes from a cache in host memory, half was encoded just now.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for module in model.modules():
            for own in (module._parameters, module._buffers):
                for name, value in own.items():
                    if value is not None:
                        moved: Any = torch.empty_like(value, device="cuda")
                        own[name] = nn.Parameter(moved) if isinstance(value, nn.Parameter) else moved
        devices = [("cpu", "cuda")[place % 2] for place in range(len(samples))]
        conditioning = [
            {key: torch.empty_like(value, device=device) for key, value in sample.items()}
            for device, sample in zip(devices, samples, strict=True)
        ]
        pixels = torch.empty(len(samples), 3, 16, 24, device="cuda")
        velocity: Tensor = model(pixels, torch.empty(len(samples), device=sigma), conditioning)
        return velocity


@pytest.fixture
def velocity_on_gpu() -> Callable[..., Tensor]:
    """A function (model, samples, device of sigma) -> velocity, without values."""
    return _velocity_on_gpu

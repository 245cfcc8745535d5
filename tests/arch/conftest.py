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


@pytest.fixture(scope="session")
def flat_halves() -> Callable[..., Tensor]:
    """A function (count=40) -> pictures (count, 3, 64, 64) in [-1, 1] of two flat halves."""

    def draw(count: int = 40) -> Tensor:
        colours = torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1
        return colours.repeat_interleave(32, dim=2)[..., None].expand(-1, -1, -1, 64).contiguous()

    return draw


@pytest.fixture
def velocity_on_gpu() -> Callable[..., Tensor]:
    """A function (model, samples, device of sigma) -> velocity, without values."""
    return _velocity_on_gpu


@pytest.fixture(scope="session")
def tiny_trunks() -> dict[str, dict[str, Any]]:
    """Configs of trunks of one block each, by family; their texts are 12 wide."""
    z_image = {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": 16,
        "dim": 32,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 12,
        "axes_dims": [4, 6, 6],
        "axes_lens": [64, 16, 16],
    }
    flux = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "axes_dims_rope": [4, 6, 6],
        "guidance_embeds": True,
    }
    return {"z-image": z_image, "flux": flux}

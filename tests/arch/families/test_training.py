"""What training and compiling need of every family: ragged batches, gradients, the order of its blocks."""

from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map


def test_a_batch_of_unequal_texts_equals_one_at_a_time(tiny: Any) -> None:
    model, conditioning = tiny.model(), tiny.samples(3, 9, 3, 5)
    pixels, sigma = torch.randn(4, 3, 12, 20), torch.tensor([0.1, 0.5, 0.7, 1.0])
    with torch.no_grad():
        together = model(pixels, sigma, conditioning)
        alone = [model(pixels[i : i + 1], sigma[i : i + 1], conditioning[i : i + 1]) for i in range(4)]
    assert together.shape == pixels.shape
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_all_but_idle_parameters_get_gradients_with_and_without_checkpointing(tiny: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny.model().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(1)
        model(torch.randn(1, 3, 8, 8), torch.tensor([0.3]), tiny.samples(4)).square().mean().backward()
        idle = {key for key, parameter in model.named_parameters() if parameter.grad is None}
        stated = tuple(f"{prefix}." for prefix in model.idle_names())
        assert idle == {key for key, _ in model.named_parameters() if key.startswith(stated)}
        gradients.append(model.trunk.get_submodule(model.source_family.embedder).weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].any()


def test_blocks_are_listed_in_the_order_in_which_they_run(tiny: Any) -> None:
    model = tiny.model()
    ran: list[str] = []
    for block in model.block_names():
        model.get_submodule(block).register_forward_pre_hook(lambda *_, block=block: ran.append(block))
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 8), torch.tensor([0.3]), tiny.samples(4))
    assert ran == model.block_names()


def test_blocks_and_shallow_modules_cover_every_parameter_once(tiny: Any) -> None:
    model = tiny.model()
    prefixes = [f"{prefix}." for prefix in model.block_names() + model.shallow_names()]
    for key, _ in model.named_parameters():
        assert sum(f"{key}.".startswith(prefix) for prefix in prefixes) == 1, key


def test_compiled_blocks_are_captured_whole_and_give_the_same_velocity(tiny: Any) -> None:
    model = tiny.model()
    inputs = (torch.randn(2, 3, 16, 8), torch.tensor([0.2, 0.7]), tiny.samples(3, 9))
    torch.compiler.reset()
    with torch.no_grad():
        eager = model(*inputs)
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
        torch.testing.assert_close(model(*inputs), eager)
    torch.compiler.reset()


def test_weights_may_be_stored_in_a_smaller_dtype_than_they_compute_in(tiny: Any) -> None:
    model = tiny.model()
    inputs = (torch.randn(2, 3, 16, 8), torch.tensor([0.2, 0.7]), tiny.samples(3, 9))
    with torch.no_grad():
        wanted = model(*inputs)
        model.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
        velocity = model(*inputs)
    assert velocity.dtype == torch.float32
    assert 0 < (velocity - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_a_trunk_and_a_head_may_have_dtypes_of_their_own(tiny: Any) -> None:
    """Frozen blocks in bfloat16 and a head that trains in float32, without autocast."""
    model = tiny.model()
    inputs = (torch.randn(2, 3, 16, 8), torch.tensor([0.2, 0.7]), tiny.samples(3, 9))
    with torch.no_grad():
        wanted = model(*inputs)
    model.trunk.requires_grad_(False).to(torch.bfloat16)
    velocity = model(*inputs)
    assert velocity.dtype == torch.float32
    torch.testing.assert_close(velocity, wanted, rtol=0.1, atol=0.1 * float(wanted.abs().max()))
    velocity.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.detailer_head.parameters())


def test_offloading_by_groups_moves_block_by_block(tiny: Any) -> None:
    model = tiny.model()
    inputs = (torch.randn(2, 3, 16, 8), torch.tensor([0.2, 0.7]), tiny.samples(3, 9))
    with torch.no_grad():
        wanted = model(*inputs)
        cpu = torch.device("cpu")  # also in the place of the GPU
        model.enable_group_offload(
            onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
        )
        assert torch.equal(model(*inputs), wanted)
    for name in model.block_names():
        assert model.get_submodule(name)._diffusers_hook.get_hook("group_offloading") is not None


def test_a_map_of_devices_never_cuts_the_head(tiny: Any) -> None:
    model = tiny.model()
    size = sum(parameter.numel() * 4 for parameter in model.detailer_head.parameters())
    for share in (0.3, 0.6, 0.9):  # of the head is what the first device has left for it
        whole = sum(parameter.numel() * 4 for parameter in model.parameters())
        room = {0: int(whole - size + share * size), "cpu": 10 * whole}
        devices = infer_auto_device_map(model, room, no_split_module_classes=model._no_split_modules)
        assert not [name for name in devices if name.startswith("detailer_head.")]


@pytest.mark.parametrize("sigma", ["cuda", "cpu"])
def test_a_forward_on_a_gpu_mixes_no_devices(tiny: Any, velocity_on_gpu: Any, sigma: str) -> None:
    if tiny.name == "lumina2":
        pytest.skip("Lumina2's own forward fetches lengths from the mask, which tensors without data lack")
    model = tiny.model()
    model.detailer_head.enable_tiling(8)
    assert velocity_on_gpu(model, tiny.samples(9, 9, 5), sigma).device.type == "cuda"


def test_a_forward_stays_on_the_device_of_its_inputs(tiny: Any) -> None:
    if tiny.name == "lumina2":
        pytest.skip("Lumina2's own forward fetches lengths from the mask, which meta tensors do not have")
    model = tiny.model().to("meta")
    conditioning = [{k: v.to("meta") for k, v in sample.items()} for sample in tiny.samples(9, 9)]
    velocity = model(torch.empty(2, 3, 16, 8, device="meta"), torch.empty(2, device="meta"), conditioning)
    assert velocity.device.type == "meta"
    assert velocity.shape == (2, 3, 16, 8)

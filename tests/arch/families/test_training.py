"""What training and compiling need of every family: ragged batches, gradients, the order of its blocks."""

from typing import Any

import pytest
import torch


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


def test_a_forward_stays_on_the_device_of_its_inputs(tiny: Any) -> None:
    if tiny.name == "lumina2":
        pytest.skip("Lumina2's own forward fetches lengths from the mask, which meta tensors do not have")
    model = tiny.model().to("meta")
    conditioning = [{k: v.to("meta") for k, v in sample.items()} for sample in tiny.samples(9, 9)]
    velocity = model(torch.empty(2, 3, 16, 8, device="meta"), torch.empty(2, device="meta"), conditioning)
    assert velocity.device.type == "meta"
    assert velocity.shape == (2, 3, 16, 8)

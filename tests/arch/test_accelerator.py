"""What a GPU gives beside the CPU: run where there is one (CUDA, MPS, XPU), skipped elsewhere.

uv run pytest tests/arch/test_accelerator.py
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import DetailerHead, L2PPipeline, L2PTransformer, convert
from l2p_mini.architecture import write_untrained_source

ACCELERATOR = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
# L2P_TEST_DEVICE=cpu tries these tests themselves on a machine without an accelerator.
DEVICE = os.environ.get("L2P_TEST_DEVICE") or (ACCELERATOR.type if ACCELERATOR else "")
pytestmark = pytest.mark.skipif(not DEVICE, reason="there is no accelerator; its own tests need one")

PROMPTS = ["a red circle", "two blue squares left of a green star on a gray background"]
SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 3, "output_type": "pt"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_untrained_source(tmp_path_factory.mktemp("source"), seed=0)
    out = tmp_path_factory.mktemp("accelerator") / "out"
    convert(source, out, head_channels=(8, 8, 16, 16))
    return out


def pipeline(directory: Path, dtype: torch.dtype = torch.float32) -> L2PPipeline:
    loaded = L2PPipeline.from_pretrained(directory, dtype=dtype)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_an_image_is_that_of_the_cpu(directory: Path) -> None:
    wanted = pipeline(directory)(PROMPTS, seeds=[1, 2], **SMALL).images
    found = pipeline(directory).to(DEVICE)(PROMPTS, seeds=[1, 2], **SMALL).images
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


def test_cached_text_a_generator_of_the_device_and_callbacks_go_along(directory: Path) -> None:
    on_device = pipeline(directory).to(DEVICE)
    cached = [{key: value.cpu() for key, value in sample.items()} for sample in on_device.encode(PROMPTS)]
    seen: list[str] = []
    on_device(
        prompt_conditioning=cached,
        generator=torch.Generator(DEVICE).manual_seed(3),
        callback_on_step_end=lambda *given: seen.append(given[3]["x_t"].device.type),
        **SMALL,
    )
    assert seen == [DEVICE] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_single_precision(directory: Path, dtype: torch.dtype) -> None:
    wanted = pipeline(directory).to(DEVICE)(PROMPTS, seeds=[1, 2], **SMALL).images
    found = pipeline(directory, dtype).to(DEVICE)(PROMPTS, seeds=[1, 2], **SMALL).images
    assert torch.isfinite(found).all()
    assert (found - wanted).square().mean() < 1e-2 * wanted.square().mean()


@pytest.mark.parametrize("way", ["model", "groups"])
def test_an_offloaded_pipeline_gives_the_same_image(directory: Path, way: str) -> None:
    wanted = pipeline(directory).to(DEVICE)("a", seeds=[1], **SMALL).images
    offloaded = pipeline(directory)
    if way == "model":
        offloaded.enable_model_cpu_offload(device=DEVICE)
    else:
        offloaded.text_encoder.to(DEVICE)
        offloaded.transformer.enable_group_offload(
            onload_device=torch.device(DEVICE), offload_type="block_level", num_blocks_per_group=1
        )
    torch.testing.assert_close(offloaded("a", seeds=[1], **SMALL).images, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (72, 100)])
def test_a_tiled_head_gives_the_output_and_gradients_of_a_whole_one(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = DetailerHead(5, (4, 6, 8)).to(DEVICE)
    pixels = torch.randn(2, 3, *size, device=DEVICE)
    features = torch.randn(2, 5, size[0] // 8, size[1] // 8, device=DEVICE)
    results = []
    for tile in (None, 16):
        head.enable_tiling(tile)
        head.gradient_checkpointing = tile is not None
        leaf = features.clone().requires_grad_()
        out = head(pixels, leaf)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), [leaf, *head.parameters()])])
    for whole, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled, whole, rtol=1e-3, atol=1e-3)


def test_a_step_of_training_is_that_of_the_cpu(directory: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(2, 3, 64, 64, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.3, 0.8])
    captions = [{"caption": torch.randn(length, 128, generator=generator)} for length in (5, 40)]
    gradients = []
    for device in ("cpu", DEVICE):
        model = L2PTransformer.from_pretrained(directory / "transformer").to(device).train()
        model.enable_gradient_checkpointing()
        x_t = (1 - sigma.view(-1, 1, 1, 1)) * x_0 + sigma.view(-1, 1, 1, 1) * noise
        velocity = model(x_t.to(device), sigma, captions)
        (velocity - (noise - x_0).to(device)).square().mean().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, wanted in gradients[0].items():
        found = gradients[1][name]
        assert (wanted is None) == (found is None), name
        if wanted is not None:
            scale = wanted.abs().max().item()
            torch.testing.assert_close(found.cpu(), wanted, rtol=1e-2, atol=1e-2 * scale + 1e-8)


def test_compiled_blocks_give_the_same_velocity(directory: Path) -> None:
    model = L2PTransformer.from_pretrained(directory / "transformer").to(DEVICE)
    inputs = (
        torch.randn(1, 3, 64, 64, device=DEVICE),
        torch.tensor([0.4]),
        [{"caption": torch.ones(7, 128)}],
    )
    torch.compiler.reset()
    with torch.no_grad():
        eager = model(*inputs)
        model.compile_repeated_blocks(fullgraph=True)
        torch.testing.assert_close(model(*inputs), eager, rtol=1e-3, atol=1e-3)
    torch.compiler.reset()

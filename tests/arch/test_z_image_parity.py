"""Our trunk is diffusers' own transformer: put its latent ends back, and the outputs are equal bit by bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from einops import rearrange
from l2p_arch import FAMILIES, ArchError, L2PTransformer
from peft import LoraConfig
from torch import Tensor

CONFIG: dict[str, Any] = {
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 4,
    "dim": 48,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 20,
    "axes_dims": [8, 8, 8],
    "axes_lens": [128, 32, 32],
}


def tiny_source() -> ZImageTransformer2DModel:
    torch.manual_seed(0)
    source = ZImageTransformer2DModel(**CONFIG).eval()
    for token in (source.x_pad_token, source.cap_pad_token):
        torch.nn.init.normal_(token)
    return source


def trunk_with_the_embedder_of(source: ZImageTransformer2DModel) -> Any:
    trunk = FAMILIES["z-image"].build_trunk(CONFIG, 16).eval()
    names = {"all_x_embedder.2-1": "all_x_embedder.1-1"}
    state = {
        name.replace("all_x_embedder.2-1", names["all_x_embedder.2-1"]): value
        for name, value in source.state_dict().items()
        if not name.startswith("all_final_layer")
    }
    trunk.load_state_dict(state)
    return trunk


def tiny_model(**changes: Any) -> L2PTransformer:
    torch.manual_seed(0)
    config = {"family": "z-image", "trunk_config": CONFIG, "patch_size": 4, "head_channels": (8, 8)} | changes
    model = L2PTransformer(**config).eval()
    for token in (model.trunk.x_pad_token, model.trunk.cap_pad_token):
        torch.nn.init.normal_(token)
    return model


def captions(*lengths: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"caption": torch.randn(length, 20, generator=generator)} for length in lengths]


@pytest.mark.parametrize(("height", "width"), [(8, 16), (10, 6), (16, 16)])
def test_with_the_latent_ends_put_back_the_output_is_bit_equal_to_diffusers(height: int, width: int) -> None:
    source = tiny_source()
    trunk = trunk_with_the_embedder_of(source)
    latents = torch.randn(2, 4, height, width)
    sigma = torch.tensor([0.3, 0.9])
    conditioning = captions(5, 40)
    with torch.no_grad():
        expected = source(
            list(latents.unsqueeze(2)), 1 - sigma, [sample["caption"] for sample in conditioning]
        )
        # The source flattens a patch as (py, px, c); keeping that order keeps its embedder as it is.
        patches = rearrange(latents, "b c (h py) (w px) -> b (py px c) h w", py=2, px=2)
        features = FAMILIES["z-image"].run(trunk, patches, sigma, conditioning)
        tokens = rearrange(features, "b d h w -> b (h w) d")
        time = source.t_embedder((1 - sigma) * 1000.0)
        out = source.all_final_layer["2-1"](tokens, c=time)
        actual = rearrange(out, "b (h w) (py px c) -> b c (h py) (w px)", h=height // 2, py=2, px=2)
    assert torch.equal(actual, torch.stack(expected.sample).squeeze(2))


def test_the_velocity_is_the_negative_of_the_raw_output() -> None:
    model = tiny_model()
    torch.nn.init.zeros_(model.detailer_head.out_conv.weight)
    torch.nn.init.constant_(model.detailer_head.out_conv.bias, 0.25)
    velocity = model(torch.zeros(1, 3, 8, 8), torch.tensor([0.5]), captions(3))
    assert torch.equal(velocity, torch.full((1, 3, 8, 8), -0.25))


def test_a_batch_of_unequal_captions_equals_one_at_a_time() -> None:
    model = tiny_model()
    pixels, sigma, conditioning = (
        torch.randn(3, 3, 20, 28),
        torch.tensor([0.1, 0.5, 1.0]),
        captions(3, 33, 70),
    )
    with torch.no_grad():
        together = model(pixels, sigma, conditioning)
        alone = [model(pixels[i : i + 1], sigma[i : i + 1], conditioning[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (12, 20), (132, 4)])
def test_any_multiple_of_the_patch_is_accepted(height: int, width: int) -> None:
    # 132 / 4 = 33 rows exceed the config's rotary table of 32
    with torch.no_grad():
        assert tiny_model()(torch.randn(1, 3, height, width), torch.ones(1), captions(2)).shape == (
            1,
            3,
            height,
            width,
        )


def test_a_longer_rotary_table_leaves_the_result_unchanged() -> None:
    pixels, sigma, conditioning = (torch.randn(1, 3, 8, 8), torch.tensor([0.5]), captions(3))
    model = tiny_model()
    with torch.no_grad():
        before = model(pixels, sigma, conditioning)
        model(torch.randn(1, 3, 4, 200), sigma, conditioning)
        assert torch.equal(model(pixels, sigma, conditioning), before)


def test_the_time_is_not_rounded_in_bfloat16() -> None:
    model = tiny_model().to(torch.bfloat16)
    seen = []
    model.trunk.t_embedder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    sigma = torch.tensor([0.1234567])
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 8), sigma, captions(3))
    assert torch.equal(seen[0], (1 - sigma) * 1000.0)


@pytest.mark.parametrize(
    ("pixels", "sigma", "count", "complaint"),
    [
        (
            torch.zeros(1, 3, 10, 8),
            torch.zeros(1),
            1,
            "height 10 is not a multiple of patch size 4; use 8 or 12",
        ),
        (torch.zeros(1, 4, 8, 8), torch.zeros(1), 1, "wanted (B, 3, H, W)"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(1), 2, "as many sigmas"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.bfloat16), 1, "pass it as float32"),
    ],
)
def test_wrong_inputs_are_named(pixels: Tensor, sigma: Tensor, count: int, complaint: str) -> None:
    with pytest.raises(ArchError) as raised:
        tiny_model()(pixels, sigma, captions(3) * count)
    assert complaint in str(raised.value)


def test_gradients_reach_the_embedder_with_and_without_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(3)
        model(torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.8]), captions(3, 9)).square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        gradients.append(model.trunk.get_submodule("all_x_embedder.1-1").weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_blocks_and_shallow_modules_cover_every_parameter_once() -> None:
    model = tiny_model()
    prefixes = [f"{name}." for name in model.block_names() + model.shallow_names()]
    for name, _ in model.named_parameters():
        assert sum(f"{name}.".startswith(prefix) for prefix in prefixes) == 1, name


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_blocks_are_captured_whole_and_give_the_same_velocity_and_gradients(backend: str) -> None:
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor wants a C++ compiler")
    model = tiny_model()
    inputs = (torch.randn(2, 3, 8, 16), torch.tensor([0.2, 0.7]), captions(3, 40))

    def velocity_and_gradients() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        velocity = model(*inputs)
        velocity.square().mean().backward()
        return [velocity.detach(), *(parameter.grad for parameter in model.parameters())]

    eager = velocity_and_gradients()
    torch.compiler.reset()
    try:
        model.compile_repeated_blocks(backend=backend, fullgraph=True)
        torch._dynamo.utils.counters.clear()
        compiled = velocity_and_gradients()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    finally:
        torch.compiler.reset()
    for value, wanted in zip(compiled, eager, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", [{"text": torch.zeros(3, 20), "pooled": torch.zeros(5)}, {}])
def test_the_conditioning_of_another_family_is_named(given: dict[str, Tensor]) -> None:
    model = tiny_model()
    with pytest.raises(ArchError) as raised:
        model(torch.zeros(2, 3, 8, 8), torch.tensor([0.2, 0.7]), [*captions(3), given])
    assert f"conditioning 1 has {', '.join(given) or 'nothing'}, but z-image wants 'caption'" in str(
        raised.value
    )
    assert "encode its prompts with this model's own pipeline" in str(raised.value)


def test_a_batch_dimension_in_the_conditioning_of_one_sample_is_named() -> None:
    batched = [{"caption": sample["caption"][None]} for sample in captions(3, 3)]
    with pytest.raises(ArchError, match=r"conditioning 0: caption has the shape \(1, 3, 20\); wanted 2 dim"):
        tiny_model()(torch.zeros(2, 3, 8, 8), torch.tensor([0.2, 0.7]), batched)


def test_a_forward_stays_on_the_device_of_its_inputs() -> None:
    model = tiny_model().to("meta")
    conditioning = [{"caption": sample["caption"].to("meta")} for sample in captions(3, 40)]
    velocity = model(torch.empty(2, 3, 8, 16, device="meta"), torch.empty(2, device="meta"), conditioning)
    assert velocity.device.type == "meta"
    assert velocity.shape == (2, 3, 8, 16)


@pytest.mark.parametrize("sigma", ["cuda", "cpu"])
def test_a_forward_on_a_gpu_mixes_no_devices(velocity_on_gpu: Any, sigma: str) -> None:
    model = tiny_model()
    model.detailer_head.enable_tiling(8)
    assert velocity_on_gpu(model, captions(5, 40, 5), sigma).device.type == "cuda"


def test_a_frozen_bfloat16_trunk_goes_with_a_float32_head() -> None:
    model = tiny_model()
    inputs = (torch.randn(2, 3, 16, 8), torch.tensor([0.2, 0.7]), captions(3, 9))
    with torch.no_grad():
        wanted = model(*inputs)
    model.trunk.requires_grad_(False).to(torch.bfloat16)
    velocity = model(*inputs)
    assert velocity.dtype == torch.float32
    torch.testing.assert_close(velocity, wanted, rtol=0.1, atol=0.1 * float(wanted.abs().max()))


def with_adapter(model: Any, target: str) -> Any:
    """An adapter that changes what the model does."""
    model.add_adapter(LoraConfig(r=2, target_modules=target))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("layers", [r"up1\.1", r"(bottleneck\.0|out_conv|enc2\.0)"])
def test_an_adapter_is_saved_and_loaded_again(tmp_path: Path, layers: str) -> None:
    model = with_adapter(tiny_model(), rf".*(attention\.to_q|detailer_head\.{layers})")
    inputs = (torch.randn(1, 3, 8, 8), torch.tensor([0.3]), captions(5))
    model.save_lora_adapter(tmp_path)
    again = tiny_model()
    with torch.no_grad():
        plain = again(*inputs)
        again.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
        adapted = again(*inputs)
        assert torch.equal(adapted, model(*inputs))
    assert (adapted - plain).abs().max() > 1e-3


def test_an_adapter_of_the_source_acts_on_the_blocks_as_it_does_there(tmp_path: Path) -> None:
    source = with_adapter(tiny_source(), r"layers\..*attention\.to_q")
    source.save_lora_adapter(tmp_path)
    trunk = trunk_with_the_embedder_of(tiny_source())
    latents, sigma, conditioning = torch.randn(1, 4, 8, 16), torch.tensor([0.3]), captions(5)
    patches = rearrange(latents, "b c (h py) (w px) -> b (py px c) h w", py=2, px=2)
    tokens: list[Tensor] = []
    source.layers[-1].register_forward_hook(lambda _, __, out: tokens.append(out))
    with torch.no_grad():
        source(list(latents.unsqueeze(2)), 1 - sigma, [sample["caption"] for sample in conditioning])
        plain = FAMILIES["z-image"].run(trunk, patches, sigma, conditioning)
        trunk.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
        adapted = FAMILIES["z-image"].run(trunk, patches, sigma, conditioning)
    expected = rearrange(tokens[0][:, :32], "b (h w) d -> b d h w", h=4, w=8)
    assert torch.equal(adapted, expected)
    assert not torch.equal(adapted, plain)


def test_a_quantised_embedder_is_fed_in_the_dtype_of_the_head() -> None:
    class Quantised(torch.nn.Module):
        """In place of an 8-bit layer, which needs a GPU."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.scale = float(linear.weight.abs().max()) / 127
            levels = (linear.weight / self.scale).round().to(torch.int8)
            self.weight = torch.nn.Parameter(levels, requires_grad=False)

        def forward(self, tokens: Tensor) -> Tensor:
            return tokens @ (self.weight * self.scale).T

    model = tiny_model()
    embedder = model.trunk.all_x_embedder["1-1"]
    torch.nn.init.zeros_(embedder.bias)
    inputs = (torch.randn(1, 3, 8, 8), torch.tensor([0.3]), captions(5))
    with torch.no_grad():
        wanted = model(*inputs)
        model.trunk.all_x_embedder["1-1"] = Quantised(embedder)
        torch.testing.assert_close(model(*inputs), wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))

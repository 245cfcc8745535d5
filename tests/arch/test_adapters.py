"""LoRAs of every layout in circulation change the model as they should, and leave nothing behind."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from l2p_arch import ArchError, L2PPipeline, L2PTransformer, identify
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("peft", reason="adapters need the extra lora")

TARGETS = ["layers.0.attention.to_q", "layers.1.attention.to_out.0", "layers.1.feed_forward.w2"]


def _pipeline(family: str, config: dict[str, Any]) -> L2PPipeline:
    torch.manual_seed(0)
    model = L2PTransformer(family, config, patch_size=4, head_channels=(8, 8)).eval()
    for value in model.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.2)
    for value in model.detailer_head.parameters():
        if value.ndim > 1:  # PyTorch's own values would let through a hundredth of what the blocks say
            torch.nn.init.kaiming_normal_(value)
    return L2PPipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler())


@pytest.fixture
def z_image(tiny_trunks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return tiny_trunks["z-image"] | {"n_layers": 2}


@pytest.fixture
def pipeline(z_image: dict[str, Any]) -> L2PPipeline:
    return _pipeline("z-image", z_image)


def _factors(pipeline: L2PPipeline, names: list[str], rank: int = 4, seed: int = 0) -> dict[str, Any]:
    """(A, B) by name of modules of the trunk."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in names:
        rows, columns = pipeline.transformer.trunk.get_submodule(name).weight.shape
        made[name] = (
            torch.randn(rank, columns, generator=generator) * 0.3,
            torch.randn(rows, rank, generator=generator) * 0.3,
        )
    return made


def _velocity(pipeline: L2PPipeline) -> Tensor:
    model = pipeline.transformer
    generator = torch.Generator().manual_seed(3)
    key = model.source_family.text_key
    sample = {key: torch.randn(5, 12, generator=generator)}
    if model.source_family.pooled_text:
        sample["pooled"] = torch.randn(10, generator=generator)
    with torch.no_grad():
        out: Tensor = model(torch.randn(1, 3, 16, 16, generator=generator), torch.tensor([0.4]), [sample])
    return out


def _merged(pipeline: L2PPipeline, factors: dict[str, Any], scale: float) -> Tensor:
    """The velocity with the updates added to the weights by hand; the weights are put back."""
    trunk = pipeline.transformer.trunk
    before = {name: trunk.get_submodule(name).weight.detach().clone() for name in factors}
    with torch.no_grad():
        for name, (a, b) in factors.items():
            trunk.get_submodule(name).weight.add_(scale * (b @ a))
        wanted = _velocity(pipeline)
        for name, value in before.items():
            trunk.get_submodule(name).weight.copy_(value)
    return wanted


def _kohya(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


LAYOUTS: dict[str, Any] = {
    "diffusers": lambda n: (f"transformer.{n}.lora_A.weight", f"transformer.{n}.lora_B.weight", None),
    "ai-toolkit": lambda n: (
        f"diffusion_model.{n}.lora_A.weight",
        f"diffusion_model.{n}.lora_B.weight",
        None,
    ),
    "comfyui with alpha": lambda n: (
        f"diffusion_model.{n}.lora_down.weight",
        f"diffusion_model.{n}.lora_up.weight",
        f"diffusion_model.{n}.alpha",
    ),
    "peft": lambda n: (
        f"base_model.model.{n}.lora_A.weight",
        f"base_model.model.{n}.lora_B.weight",
        None,
    ),
    "peft with adapter": lambda n: (f"{n}.lora_A.default.weight", f"{n}.lora_B.default.weight", None),
    "kohya": lambda n: (
        f"{_kohya(n)}.lora_down.weight",
        f"{_kohya(n)}.lora_up.weight",
        f"{_kohya(n)}.alpha",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_adds_its_update_to_the_weights(
    pipeline: L2PPipeline, layout: str, tmp_path: Path
) -> None:
    factors = _factors(pipeline, TARGETS)
    tensors = {}
    for name, (a, b) in factors.items():
        down, up, alpha = LAYOUTS[layout](name)
        tensors |= {down: a, up: b} | ({alpha: torch.tensor(2.0)} if alpha else {})
    save_file(tensors, tmp_path / "style.safetensors")
    base = _velocity(pipeline)
    scale = 0.5 if LAYOUTS[layout]("x")[2] else 1.0
    wanted = _merged(pipeline, factors, scale)
    pipeline.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    assert pipeline.get_active_adapters() == ["style"]
    torch.testing.assert_close(_velocity(pipeline), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(wanted, base, atol=1e-3)
    pipeline.unload_lora_weights()
    assert torch.equal(_velocity(pipeline), base)


def test_alpha_of_pefts_config_and_of_diffusers_metadata_counts(
    pipeline: L2PPipeline, tmp_path: Path
) -> None:
    factors = _factors(pipeline, TARGETS)
    tensors = {}
    for name, (a, b) in factors.items():
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 12, "alpha_pattern": {"attention.to_q": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    own = {name: (a, b * (0.5 if name.endswith("to_q") else 3)) for name, (a, b) in factors.items()}
    wanted = _merged(pipeline, own, 1.0)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(_velocity(pipeline), wanted, rtol=1e-4, atol=1e-5)
    pipeline.unload_lora_weights()
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    names = {f"transformer.{name}" for name in factors}
    tensors = {f"{n}.lora_A.weight": factors[n.removeprefix("transformer.")][0] for n in names}
    tensors |= {f"{n}.lora_B.weight": factors[n.removeprefix("transformer.")][1] for n in names}
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    wanted = _merged(pipeline, factors, 2.0)
    pipeline.load_lora_weights(tmp_path / "b.safetensors")
    torch.testing.assert_close(_velocity(pipeline), wanted, rtol=1e-4, atol=1e-5)


def test_several_adapters_act_together_by_their_weights_and_leave_the_base_bit_equal(
    pipeline: L2PPipeline, tmp_path: Path
) -> None:
    base, state = _velocity(pipeline), {k: v.clone() for k, v in pipeline.transformer.state_dict().items()}
    both = {}
    for seed, name in enumerate(("ink", "fog")):
        both[name] = _factors(pipeline, TARGETS, seed=seed)
        tensors = {}
        for module, (a, b) in both[name].items():
            down, up, _ = LAYOUTS["diffusers"](module)
            tensors |= {down: a, up: b}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        pipeline.load_lora_weights(str(tmp_path / f"{name}.safetensors"), adapter_name=name)
    pipeline.set_adapters(["ink", "fog"], [0.7, -0.4])
    together = _velocity(pipeline)
    pipeline.fuse_lora()
    torch.testing.assert_close(_velocity(pipeline), together, rtol=1e-4, atol=1e-4)
    with pytest.raises(ArchError, match="fused already"):
        pipeline.fuse_lora()
    pipeline.unfuse_lora()
    assert torch.equal(_velocity(pipeline), together)
    pipeline.unload_lora_weights()
    assert torch.equal(_velocity(pipeline), base)
    left = pipeline.transformer.state_dict()
    assert left.keys() == state.keys()
    assert all(torch.equal(left[key], value) for key, value in state.items())
    sums = {}
    for module in TARGETS:
        updates = [w * (both[n][module][1] @ both[n][module][0]) for n, w in (("ink", 0.7), ("fog", -0.4))]
        total = sum(updates)
        sums[module] = (torch.eye(total.shape[1]), total)
    torch.testing.assert_close(together, _merged(pipeline, sums, 1.0), rtol=1e-4, atol=1e-4)


def test_packed_projections_of_comfyui_are_split(pipeline: L2PPipeline) -> None:
    generator = torch.Generator().manual_seed(7)
    a, b = torch.randn(2, 32, generator=generator), torch.randn(96, 2, generator=generator)
    out = _factors(pipeline, ["layers.0.attention.to_out.0"])
    packed = {
        "diffusion_model.layers.0.attention.qkv.lora_A.weight": a,
        "diffusion_model.layers.0.attention.qkv.lora_B.weight": b,
        "diffusion_model.layers.0.attention.out.lora_A.weight": out["layers.0.attention.to_out.0"][0],
        "diffusion_model.layers.0.attention.out.lora_B.weight": out["layers.0.attention.to_out.0"][1],
    }
    parts = {
        f"layers.0.attention.to_{letter}": (a, chunk) for letter, chunk in zip("qkv", b.chunk(3), strict=True)
    }
    wanted = _merged(pipeline, parts | out, 1.0)
    pipeline.load_lora_weights(packed)
    torch.testing.assert_close(_velocity(pipeline), wanted, rtol=1e-4, atol=1e-4)


def test_adapters_of_pixel_space_models_reach_head_and_embedder(pipeline: L2PPipeline) -> None:
    """In the published order of a patch's columns (py, px, c), ours is (c, py, px)."""
    generator = torch.Generator().manual_seed(8)
    a, b = torch.randn(2, 48, generator=generator), torch.randn(32, 2, generator=generator)
    conv_a = torch.randn(2, 3, 3, 3, generator=generator)
    conv_b = torch.randn(8, 2, 1, 1, generator=generator)
    model = pipeline.transformer
    embedder = model.trunk.get_submodule("all_x_embedder.1-1").weight
    head = model.detailer_head.get_submodule("enc1.0").weight
    before = embedder.detach().clone(), head.detach().clone()
    with torch.no_grad():
        embedder.add_((b @ a).reshape(32, 4, 4, 3).permute(0, 3, 1, 2).reshape(32, 48))
        head.add_(torch.einsum("or,rcyx->ocyx", conv_b[:, :, 0, 0], conv_a))
        wanted = _velocity(pipeline)
        embedder.copy_(before[0])
        head.copy_(before[1])
    pipeline.load_lora_weights(
        {
            "diffusion_model.all_x_embedder.4-1.lora_A.weight": a,
            "diffusion_model.all_x_embedder.4-1.lora_B.weight": b,
            "diffusion_model.detailer_head.enc1.0.lora_A.weight": conv_a,
            "diffusion_model.detailer_head.enc1.0.lora_B.weight": conv_b,
        }
    )
    torch.testing.assert_close(_velocity(pipeline), wanted, rtol=1e-4, atol=1e-4)


def test_a_saved_adapter_of_the_whole_model_comes_back(pipeline: L2PPipeline, tmp_path: Path) -> None:
    from peft import LoraConfig

    targets = ["to_q", "enc2.0"]
    pipeline.transformer.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=targets), "trained")
    for name, value in pipeline.transformer.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value)
    wanted = _velocity(pipeline)
    pipeline.transformer.save_lora_adapter(tmp_path, adapter_name="trained")
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(_velocity(pipeline), wanted, rtol=1e-4, atol=1e-4)


def test_kohyas_names_of_flux_go_through_the_familys_own_converter(
    tiny_trunks: dict[str, dict[str, Any]],
) -> None:
    pipeline = _pipeline("flux", tiny_trunks["flux"] | {"guidance_embeds": False})
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 32, generator=generator), torch.randn(96, 2, generator=generator)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(2.0)}
    parts = {
        f"transformer_blocks.0.attn.to_{part}": (a, chunk)
        for part, chunk in zip("qkv", b.chunk(3), strict=True)
    }
    wanted = _merged(pipeline, parts, 1.0)
    pipeline.load_lora_weights(tensors)
    torch.testing.assert_close(_velocity(pipeline), wanted, rtol=1e-4, atol=1e-4)


def _pair(name: str, rows: int = 32, columns: int = 32) -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)}


GOOD = _pair("diffusion_model.layers.0.attention.to_q")


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        (_pair("transformer.single_blocks.9.linear"), "fits nothing in this z-image model; it adapts single"),
        (GOOD | _pair("diffusion_model.layers.7.attention.to_q"), "1 of 2 parts .* are for no part here"),
        (GOOD | _pair("diffusion_model.all_final_layer.2-1.linear"), "source's latent ends, .*strict=False"),
        (GOOD | _pair("text_encoder.layers.0.q_proj"), "text_encoder.layers.0.q_proj"),
        (_pair("diffusion_model.layers.0.attention.to_q", 64), "made for a model of other widths"),
        (GOOD | {"diffusion_model.layers.0.attention.to_k.lora_A.weight": torch.ones(2, 32)}, "to_k.lora_A"),
        ({key: value * float("nan") for key, value in GOOD.items()}, "NaN or infinity"),
        ({"layers.0.attention.to_q.lokr_w1": torch.ones(2, 2)}, r"is a LoKr \(Kronecker factors\), and only"),
        ({"lycoris_layers_0_attention_to_q.hada_w1_a": torch.ones(2, 2)}, "is a LoHa"),
        (GOOD | {"diffusion_model.layers.0.attention.to_q.dora_scale": torch.ones(32)}, "is a DoRA"),
        ({"layers.0.attention.to_q.diff": torch.ones(32, 32)}, "is a full difference of weights"),
        ({"layers.0.attention.to_q.weight": torch.ones(32, 32)}, "is no adapter: no tensor of it"),
    ],
)
def test_an_adapter_that_is_not_wholly_used_is_one_line_and_changes_nothing(
    pipeline: L2PPipeline, tmp_path: Path, tensors: dict[str, Tensor], complaint: str
) -> None:
    base = {key: value.clone() for key, value in pipeline.transformer.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ArchError, match=complaint) as caught:
        pipeline.load_lora_weights(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    left = pipeline.transformer.state_dict()
    assert left.keys() == base.keys()
    assert all(torch.equal(left[key], value) for key, value in base.items())


def test_what_is_not_used_can_be_left_out(pipeline: L2PPipeline) -> None:
    wanted = _merged(pipeline, {"layers.0.attention.to_q": (torch.ones(2, 32), torch.ones(32, 2))}, 1.0)
    pipeline.load_lora_weights(GOOD | _pair("diffusion_model.all_final_layer.2-1.linear"), strict=False)
    torch.testing.assert_close(_velocity(pipeline), wanted, rtol=1e-4, atol=1e-4)


def test_wrong_uses_are_named(pipeline: L2PPipeline, tmp_path: Path) -> None:
    with pytest.raises(ArchError, match="no adapter is loaded; call load_lora_weights first"):
        pipeline.fuse_lora()
    with pytest.raises(ArchError, match="no adapter is fused"):
        pipeline.unfuse_lora()
    with pytest.raises(ArchError, match=r"there is no .*style.safetensors; give a LoRA's safetensors file"):
        pipeline.load_lora_weights(tmp_path / "style.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArchError, match="holds 0 safetensors files"):
        pipeline.load_lora_weights(tmp_path / "empty")
    torch.save(GOOD, tmp_path / "lora.bin")
    with pytest.raises(ArchError, match="not a safetensors file"):
        pipeline.load_lora_weights(tmp_path / "lora.bin")
    pipeline.load_lora_weights(GOOD, adapter_name="one")
    with pytest.raises(ArchError, match="'one' is loaded already"):
        pipeline.load_lora_weights(GOOD, adapter_name="one")
    pipeline.fuse_lora()
    with pytest.raises(ArchError, match="fused into the weights; unfuse_lora first"):
        pipeline.load_lora_weights(GOOD)


def test_adapters_go_onto_a_bfloat16_model(pipeline: L2PPipeline) -> None:
    pipeline.transformer.to(torch.bfloat16)
    base = _velocity(pipeline)
    pipeline.load_lora_weights({key: value * 0.1 for key, value in GOOD.items()})
    assert not torch.equal(_velocity(pipeline), base)
    pipeline.fuse_lora()
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    assert torch.equal(_velocity(pipeline), base)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (GOOD, "a LoRA; load it with L2PPipeline.load_lora_weights"),
        ({"a.lokr_w1": torch.ones(2, 2)}, r"a LoKr"),
        ({"lora_unet_a.hada_w2_b": torch.ones(2, 2)}, "a LoHa"),
    ],
)
def test_adapters_are_identified(tensors: dict[str, Tensor], what: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    assert what in identify(tmp_path / "x.safetensors")


def test_the_source_pipeline_and_ours_read_a_file_alike(
    pipeline: L2PPipeline, z_image: dict[str, Any], tmp_path: Path
) -> None:
    """ZImagePipeline's own loader, on the source that the trunk's blocks are of."""
    source = diffusers.ZImageTransformer2DModel(**z_image)
    theirs = diffusers.ZImagePipeline(
        scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=source
    )
    factors = _factors(pipeline, TARGETS)
    tensors = {}
    for name, (a, b) in factors.items():
        down, up, alpha = LAYOUTS["kohya"](name)
        tensors |= {down: a, up: b, alpha: torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    theirs.load_lora_weights(tmp_path, weight_name="a.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    for name in TARGETS:
        updates = []
        for root in (source, pipeline.transformer.trunk):
            layer: Any = root.get_submodule(name)
            [adapter] = layer.lora_A
            scale = layer.scaling[adapter]
            updates.append(scale * layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight)
        torch.testing.assert_close(*updates)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"alpha": torch.tensor(float("inf"))}, "has alpha inf"),
        ({"alpha": torch.tensor(float("nan"))}, "has alpha nan"),
        ({"alpha": torch.ones(3)}, "has 3 values, wanted one"),
        ({"lora_A.weight": torch.ones(())}, "wanted two matrices"),
        ({"lora_B.weight": torch.ones(32)}, "wanted two matrices"),
        ({"lora_A.weight": torch.ones(0, 32), "lora_B.weight": torch.ones(32, 0)}, "a rank of 1 or more"),
        ({"lora_A.weight": torch.full((2, 32), float("inf"))}, "holds NaN or infinity"),
    ],
)
def test_a_damaged_factor_or_alpha_is_named(
    change: dict[str, Tensor], words: str, pipeline: L2PPipeline
) -> None:
    name = next(iter(GOOD)).partition(".lora_")[0]
    with pytest.raises(ArchError, match=words):
        pipeline.load_lora_weights(GOOD | {f"{name}.{part}": value for part, value in change.items()})


@pytest.mark.parametrize("name", ["a.b", 3])
def test_a_name_that_no_adapter_can_have_is_named(name: Any, pipeline: L2PPipeline) -> None:
    with pytest.raises(ArchError, match="wanted text without a dot"):
        pipeline.load_lora_weights(GOOD, adapter_name=name)


def test_an_adapter_is_not_fused_into_whole_numbers(pipeline: L2PPipeline) -> None:
    pipeline.load_lora_weights(GOOD)
    layer = pipeline.transformer.get_submodule("trunk.layers.0.attention.to_q").get_base_layer()
    layer.weight = torch.nn.Parameter(torch.ones(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ArchError, match="weights are quantised"):
        pipeline.fuse_lora()

"""Files by ComfyUI's names hold the same bytes as ours, in both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, L2PTransformer, convert, export_public, identify, import_public
from l2p_arch.cli import main
from safetensors.torch import load_file, save_file

PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def model(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comfyui") / "model"
    convert(untrained_source, out, head_channels=(8, 8, 8, 8), seed=3)
    return out


def test_the_names_are_comfyuis_and_the_projections_packed(model: Path, tmp_path: Path) -> None:
    assert main(["export", str(model), str(tmp_path / "c.safetensors"), "--layout", "comfyui"]) == 0
    theirs = load_file(tmp_path / "c.safetensors")
    assert all(name.startswith(PREFIX) for name in theirs)
    bare: dict[str, Any] = {name.removeprefix(PREFIX): value for name, value in theirs.items()}
    ours = L2PTransformer.from_pretrained(model / "transformer").state_dict()
    block = "layers.0.attention"
    packed = torch.cat([ours[f"trunk.{block}.to_{letter}.weight"] for letter in "qkv"])
    assert torch.equal(bare[f"{block}.qkv.weight"], packed)
    assert torch.equal(bare[f"{block}.out.weight"], ours[f"trunk.{block}.to_out.0.weight"])
    assert torch.equal(bare[f"{block}.q_norm.weight"], ours[f"trunk.{block}.norm_q.weight"])
    assert torch.equal(bare["local_decoder.out_conv.weight"], ours["detailer_head.out_conv.weight"])
    assert bare["x_embedder.weight"].shape == (packed.shape[1], 3 * 16 * 16)
    assert not any(".to_q." in name or "all_x_embedder" in name for name in bare)
    assert identify(tmp_path / "c.safetensors") == "an L2P model in its ComfyUI layout"


@pytest.mark.parametrize("prefix", [PREFIX, "diffusion_model.", ""])
def test_a_file_of_comfyui_comes_back_bit_by_bit(
    model: Path, untrained_source: Path, tmp_path: Path, prefix: str
) -> None:
    export_public(model, tmp_path / "c.safetensors", comfyui=True)
    named = {
        prefix + name.removeprefix(PREFIX): value
        for name, value in load_file(tmp_path / "c.safetensors").items()
    }
    save_file(named, tmp_path / "d.safetensors")
    assert import_public(tmp_path / "d.safetensors", untrained_source, tmp_path / "back") == "1k"
    ours = L2PTransformer.from_pretrained(model / "transformer").state_dict()
    back = L2PTransformer.from_pretrained(tmp_path / "back/transformer").state_dict()
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


@pytest.mark.parametrize("comfyui", [False, True])
def test_a_model_is_read_from_a_single_file_alone(model: Path, tmp_path: Path, comfyui: bool) -> None:
    export_public(model, tmp_path / "m.safetensors", comfyui=comfyui)
    ours = L2PTransformer.from_pretrained(model / "transformer").eval()
    alone = L2PTransformer.from_single_file(tmp_path / "m.safetensors")
    width = ours.config["trunk_config"]["cap_feat_dim"]
    inputs = torch.randn(1, 3, 32, 32), torch.tensor([0.3]), [{"caption": torch.randn(4, width)}]
    with torch.no_grad():
        assert torch.equal(ours(*inputs), alone(*inputs))
    half = L2PTransformer.from_single_file(tmp_path / "m.safetensors", dtype=torch.bfloat16)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    with pytest.raises(ArchError, match="is not a file"):
        L2PTransformer.from_single_file(tmp_path / "nowhere.safetensors")


def test_a_latent_z_image_of_comfyui_is_named_and_not_imported(
    model: Path, untrained_source: Path, tmp_path: Path
) -> None:
    export_public(model, tmp_path / "c.safetensors", comfyui=True)
    latent = {k: v for k, v in load_file(tmp_path / "c.safetensors").items() if "local_decoder" not in k}
    width = latent[f"{PREFIX}x_embedder.weight"].shape[0]
    latent[f"{PREFIX}x_embedder.weight"] = torch.zeros(width, 64)
    latent[f"{PREFIX}final_layer.linear.weight"] = torch.zeros(64, width)
    save_file(latent, tmp_path / "z.safetensors")
    assert "a latent Z-Image transformer in ComfyUI's layout" in identify(tmp_path / "z.safetensors")
    with pytest.raises(ArchError, match="is no published L2P layout: it is a latent Z-Image"):
        import_public(tmp_path / "z.safetensors", untrained_source, tmp_path / "out")


def test_a_damaged_file_of_comfyui_is_one_line(model: Path, untrained_source: Path, tmp_path: Path) -> None:
    export_public(model, tmp_path / "c.safetensors", comfyui=True)
    whole = load_file(tmp_path / "c.safetensors")
    damages: list[dict[str, Any]] = [
        {k: v for k, v in whole.items() if not k.endswith("x_embedder.weight")},
        {k: v for k, v in whole.items() if not k.endswith("layers.0.attention.out.weight")},
        whole | {f"{PREFIX}layers.0.attention.qkv.weight": torch.zeros(7, 192)},
        whole | {f"{PREFIX}x_embedder.weight": torch.zeros(192, 64)},
    ]
    for number, tensors in enumerate(damages):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        with pytest.raises(ArchError) as caught:
            import_public(tmp_path / f"{number}.safetensors", untrained_source, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()

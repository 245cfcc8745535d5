"""Single files in the public layouts, trained-delta files, and wrong files named for what they are."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from l2p_arch import (
    PUBLIC_LAYOUTS,
    ArchError,
    L2PTransformer,
    convert,
    export_public,
    fingerprint,
    identify,
    import_public,
    merge_delta,
    save_delta,
    weights_hash,
)
from l2p_mini.architecture import write_untrained_source
from safetensors import safe_open
from safetensors.torch import load_file, save_file

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FULL_SIZE_HEADS = {
    "1k": (16, {"head_channels": (64, 128, 256, 512)}, 545, "577b2d3e0acea1fb784ca600f966805e"),
    "4k": (64, {"head_channels": (16, 32, 64, 128, 256, 512)}, 557, "69e8fd5b562ea858b9f864508c1263b3"),
    "8k": (
        128,
        {"head_channels": (3, 16, 32, 64, 128, 256, 512), "head_decoder_floor": 16},
        563,
        "df0e4e865d39501e2fe96c7ea8aa40f6",
    ),
    "10k": (
        160,
        {"head_channels": (3, 16, 32, 64, 128, 256), "head_decoder_floor": 16, "head_bottleneck": 512},
        557,
        "e6094ba663b7c10011eb47db072ead0b",
    ),
}


@pytest.fixture(scope="module")
def model(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose main blocks 2 and 3 are float32 and the rest bfloat16, like the released
    file."""
    out = tmp_path_factory.mktemp("checkpoints") / "model"
    convert(untrained_source, out, head_channels=(8, 8, 16, 16), dtype="bfloat16")
    state = load_file(out / WEIGHTS)
    state = {name: value.float() if ".layers.2." in name else value for name, value in state.items()}
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    return out


def same_tensors(first: Path, second: Path) -> bool:
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


@pytest.mark.parametrize("name", FULL_SIZE_HEADS)
def test_the_full_size_structure_has_the_published_fingerprint(name: str) -> None:
    patch_size, head, count, known = FULL_SIZE_HEADS[name]
    with torch.device("meta"):
        state = L2PTransformer("z-image", {"dim": 3840}, patch_size, **head).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, value in state.items():
        if ours.startswith("detailer_head."):
            public = PUBLIC_LAYOUTS[name].head_name(ours.removeprefix("detailer_head."))
        else:
            public = ours.removeprefix("trunk.").replace(
                "all_x_embedder.1-1", f"all_x_embedder.{patch_size}-1"
            )
        shapes[public] = tuple(value.shape)
    assert len(shapes) == count
    assert fingerprint(shapes) == known


def test_export_and_import_round_trip_bit_by_bit(model: Path, untrained_source: Path, tmp_path: Path) -> None:
    assert export_public(model, tmp_path / "one.safetensors") == "1k"
    assert import_public(tmp_path / "one.safetensors", untrained_source, tmp_path / "model") == "1k"
    export_public(tmp_path / "model", tmp_path / "two.safetensors")
    assert same_tensors(model / WEIGHTS, tmp_path / "model" / WEIGHTS)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_an_export_beside_its_model_may_be_repeated(model: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    for overwrite in (False, True):
        export_public(own, own / "mine.safetensors", overwrite=overwrite)
    with pytest.raises(ArchError, match="already exists"):
        export_public(own, own / "mine.safetensors")


def test_keys_of_a_config_that_say_nothing_of_the_trunk_do_not_hinder(
    model: Path, untrained_source: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    config = json.loads((own / "transformer/config.json").read_text())
    config["trunk_config"] |= {"_class_name": "ZImageTransformer2DModel", "_diffusers_version": "0.1"}
    (own / "transformer/config.json").write_text(json.dumps(config))
    export_public(own, tmp_path / "one.safetensors")
    import_public(tmp_path / "one.safetensors", untrained_source, tmp_path / "again")
    assert same_tensors(own / WEIGHTS, tmp_path / "again" / WEIGHTS)


def test_an_imported_model_is_the_same_function(model: Path, untrained_source: Path, tmp_path: Path) -> None:
    export_public(model, tmp_path / "one.safetensors")
    import_public(tmp_path / "one.safetensors", untrained_source, tmp_path / "model")
    inputs = (torch.randn(1, 3, 32, 48), torch.tensor([0.4]), [{"caption": torch.randn(5, 128)}])
    with torch.no_grad():
        ours, imported = (
            L2PTransformer.from_pretrained(path / "transformer", dtype=torch.float32)(*inputs)
            for path in (model, tmp_path / "model")
        )
    assert torch.equal(ours, imported)


def test_what_shapes_do_not_tell_of_the_trunk_comes_back_from_the_metadata(
    untrained_source: Path, tmp_path: Path
) -> None:
    unusual = {"rope_theta": 10_000.0, "norm_eps": 1e-3, "axes_dims": [16, 8, 8], "t_scale": 10.0}
    write_untrained_source(tmp_path / "source", **unusual)
    convert(tmp_path / "source", tmp_path / "model", head_channels=(8, 8, 16, 16))
    export_public(tmp_path / "model", tmp_path / "one.safetensors")
    import_public(tmp_path / "one.safetensors", untrained_source, tmp_path / "again")
    configs = [
        L2PTransformer.load_config(tmp_path / name / "transformer")["trunk_config"]
        for name in ("model", "again")
    ]
    for key, value in unusual.items():
        assert configs[0][key] == configs[1][key] == value
    pixels, sigma = torch.randn(1, 3, 32, 48), torch.tensor([0.4])
    with torch.no_grad():
        first, second = (
            L2PTransformer.from_pretrained(tmp_path / name / "transformer")(
                pixels, sigma, [{"caption": torch.full((5, 128), 0.1)}]
            )
            for name in ("model", "again")
        )
    assert torch.equal(first, second)


def test_a_published_file_needs_no_metadata(tmp_path: Path) -> None:
    """What is exported with Z-Image's own config carries nothing that published files do not."""
    model = L2PTransformer(
        "z-image", {"dim": 256, "n_heads": 2, "n_kv_heads": 2, "n_layers": 1}, 16, (4,) * 4
    )
    model.save_pretrained(tmp_path / "model/transformer")
    export_public(tmp_path / "model", tmp_path / "one.safetensors")
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_public_embedder_reads_patches_channel_last(model: Path, tmp_path: Path) -> None:
    export_public(model, tmp_path / "one.safetensors")
    public = load_file(tmp_path / "one.safetensors")
    ours = load_file(model / WEIGHTS)
    pixels = torch.randn(1, 3, 16, 16)
    channel_last = pixels.permute(0, 2, 3, 1).flatten(1)
    expected = channel_last @ public["all_x_embedder.16-1.weight"].float().T
    torch.testing.assert_close(
        pixels.flatten(1) @ ours["trunk.all_x_embedder.1-1.weight"].float().T, expected
    )
    dim = public["x_pad_token"].shape[1]
    converted = public["all_x_embedder.16-1.weight"].view(dim, 16, 16, 3).permute(0, 3, 1, 2).reshape(dim, -1)
    assert torch.equal(converted, ours["trunk.all_x_embedder.1-1.weight"])


@pytest.mark.parametrize(
    ("name", "patch_size", "head"),
    [
        ("4k", 64, {"head_channels": (4, 4, 8, 8, 8, 16)}),
        ("8k", 128, {"head_channels": (3, 16, 16, 16, 16, 16, 16), "head_decoder_floor": 16}),
        (
            "10k",
            160,
            {"head_channels": (3, 16, 16, 16, 16, 16), "head_decoder_floor": 16, "head_bottleneck": 20},
        ),
        ("8k", 128, {"head_channels": (3, 4, 4, 8, 8, 8, 8)}),
        ("1k", 16, {"head_channels": (4, 8, 8, 16), "head_decoder_floor": 6}),
    ],
)
def test_high_resolution_layouts_round_trip(
    untrained_source: Path, tmp_path: Path, name: str, patch_size: int, head: dict[str, Any]
) -> None:
    trunk = json.loads((untrained_source / "transformer/config.json").read_text())
    first = L2PTransformer("z-image", {k: v for k, v in trunk.items() if k[0] != "_"}, patch_size, **head)
    first.bfloat16().save_pretrained(tmp_path / "first/transformer")
    assert export_public(tmp_path / "first", tmp_path / "one.safetensors") == name
    assert import_public(tmp_path / "one.safetensors", untrained_source, tmp_path / "second") == name
    assert same_tensors(tmp_path / "first" / WEIGHTS, tmp_path / "second" / WEIGHTS)
    export_public(tmp_path / "second", tmp_path / "one.safetensors", overwrite=True)
    assert L2PTransformer.load_config(tmp_path / "second/transformer")["trunk_config"]["dim"] == trunk["dim"]


def test_a_delta_merged_into_its_base_is_the_trained_model(model: Path, tmp_path: Path) -> None:
    base = load_file(model / WEIGHTS)
    trained = {name: value + 1 for name, value in base.items() if "layers.0." in name or "detailer" in name}
    save_delta(trained, model, tmp_path / "delta.safetensors")
    merge_delta(model, tmp_path / "delta.safetensors", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / WEIGHTS)
    assert all(torch.equal(merged[name], trained.get(name, base[name])) for name in base)
    assert (tmp_path / "delta.safetensors").stat().st_size < (model / WEIGHTS).stat().st_size / 3
    L2PTransformer.from_pretrained(tmp_path / "merged/transformer")


def test_a_delta_knows_its_base(model: Path, untrained_source: Path, tmp_path: Path) -> None:
    name = "trunk.x_pad_token"
    save_delta({name: load_file(model / WEIGHTS)[name]}, model, tmp_path / "delta.safetensors")
    convert(untrained_source, tmp_path / "other", head_channels=(8, 8, 16, 16), seed=7)
    with pytest.raises(ArchError, match="another base"):
        merge_delta(tmp_path / "other", tmp_path / "delta.safetensors", tmp_path / "merged")
    with pytest.raises(ArchError, match="is not a tensor of"):
        save_delta({"nonsense": torch.zeros(1)}, model, tmp_path / "wrong.safetensors")
    with pytest.raises(ArchError, match="has the shape"):
        save_delta({name: torch.zeros(1)}, model, tmp_path / "wrong.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta.safetensors", "other"]


def test_the_hash_of_weights_does_not_depend_on_shards(untrained_source: Path, tmp_path: Path) -> None:
    convert(untrained_source, tmp_path / "one", head_channels=(8, 8))
    convert(untrained_source, tmp_path / "many", head_channels=(8, 8), max_shard_bytes=1 << 20)
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "many")


def latent(path: Path) -> None:
    config = {"dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 1, "n_kv_heads": 1}
    state = ZImageTransformer2DModel(**config, cap_feat_dim=8, axes_dims=[8, 12, 12]).state_dict()
    save_file(state, path)


WRONG_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "latent": (latent, "a latent Z-Image transformer"),
    "dec_net": (lambda path: save_file({"dec_net.x": torch.zeros(1)}, path), "of another kind (dec_net)"),
    "lora": (lambda path: save_file({"layers.0.to_q.lora_A.weight": torch.zeros(1)}, path), "a LoRA"),
    "truncated": (
        lambda path: (save_file({"x": torch.zeros(9)}, path), path.write_bytes(path.read_bytes()[:-4])),
        "cut off",
    ),
    "pickle": (lambda path: torch.save({"x": torch.zeros(1)}, path), "a pickle"),
    "bare pickle": (lambda path: path.write_bytes(pickle.dumps({"x": 1})), "a pickle"),
    "text": (lambda path: path.write_text("hello, this is no model"), "not a safetensors file"),
    "other": (lambda path: save_file({"conv.weight": torch.zeros(1)}, path), "another model (1 tensors"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_wrong_file_is_named_for_what_it_is(untrained_source: Path, tmp_path: Path, kind: str) -> None:
    write, description = WRONG_FILES[kind]
    path = tmp_path / "model-1k-merge.safetensors"
    write(path)
    assert description in identify(path)
    with pytest.raises(ArchError) as raised:
        import_public(path, untrained_source, tmp_path / "out")
    assert description in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_safetensors_file_that_begins_as_a_pickle_does_is_known(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for padding in range(640):
        save_file({"local_decoder.x": torch.zeros(1)}, path, metadata={"note": "x" * padding})
        if path.read_bytes()[:2] == b"\x80\x02":  # a header of 640 bytes
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert identify(path) == "an L2P model in a single-file layout"


def test_a_missing_delta_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchError, match=r"delta\.safetensors is not a file"):
        merge_delta(model, tmp_path / "delta.safetensors", tmp_path / "merged")


def test_a_file_with_a_missing_tensor_is_refused(model: Path, untrained_source: Path, tmp_path: Path) -> None:
    export_public(model, tmp_path / "one.safetensors")
    state = load_file(tmp_path / "one.safetensors")
    del state["local_decoder.up2.1.bias"]
    save_file(state, tmp_path / "one.safetensors")
    with pytest.raises(ArchError, match=r"up2\.1\.bias is missing, where the model has \(8,\)"):
        import_public(tmp_path / "one.safetensors", untrained_source, tmp_path / "out")


def test_weights_that_are_not_those_of_their_config_are_not_exported(model: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(model, tmp_path / "damaged"))
    state = load_file(damaged / WEIGHTS)
    del state["detailer_head.out_conv.bias"]
    save_file(state, damaged / WEIGHTS)
    with pytest.raises(ArchError, match=r"out_conv\.bias is missing, where the model has \(3,\)"):
        export_public(damaged, tmp_path / "one.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_pipeline_is_known_by_its_content_and_not_by_its_path(
    model: Path, untrained_source: Path, tmp_path: Path
) -> None:
    export_public(model, tmp_path / "one.safetensors")
    other = Path(shutil.copytree(untrained_source, tmp_path / "z-image-flux"))
    config = json.loads((other / "transformer/config.json").read_text())
    config["_class_name"] = "FluxTransformer2DModel"
    (other / "transformer/config.json").write_text(json.dumps(config))
    with pytest.raises(ArchError, match=r"of the family flux; .*give a Z-Image directory"):
        import_public(tmp_path / "one.safetensors", other, tmp_path / "out")
    shutil.rmtree(other / "transformer")
    with pytest.raises(ArchError, match=r"without a transformer.*give a Z-Image directory"):
        import_public(tmp_path / "one.safetensors", other, tmp_path / "out")


def test_a_delta_is_of_a_pixel_space_model_with_its_config(
    model: Path, untrained_source: Path, tmp_path: Path
) -> None:
    delta, name = tmp_path / "delta.safetensors", "detailer_head.out_conv.bias"
    with pytest.raises(ArchError, match="no L2P model directory: its transformer's config lacks family"):
        save_delta({"x_pad_token": torch.ones(1)}, untrained_source, delta)
    for value in (torch.ones(3, dtype=torch.long), torch.ones(3, device="meta")):
        with pytest.raises(ArchError, match="pass trained values, which are floats"):
            save_delta({name: value}, model, delta)
    with pytest.raises(ArchError, match="is part of what is read"):
        save_delta({name: torch.ones(3)}, model, model / WEIGHTS, overwrite=True)
    save_delta({name: torch.ones(3)}, model, delta)
    changed = Path(shutil.copytree(model, tmp_path / "changed"))
    config = json.loads((changed / "transformer/config.json").read_text())
    config["trunk_config"]["norm_eps"] = 0.5
    (changed / "transformer/config.json").write_text(json.dumps(config))
    with pytest.raises(ArchError, match="trained from a base with another config"):
        merge_delta(changed, delta, tmp_path / "merged")


def test_every_export_brings_a_model_card(model: Path, untrained_source: Path, tmp_path: Path) -> None:
    export_public(model, tmp_path / "one.safetensors")
    import_public(tmp_path / "one.safetensors", untrained_source, tmp_path / "imported")
    base = load_file(model / WEIGHTS)
    save_delta({"trunk.x_pad_token": base["trunk.x_pad_token"]}, model, tmp_path / "delta.safetensors")
    merge_delta(model, tmp_path / "delta.safetensors", tmp_path / "merged")
    parameters = f"{sum(value.numel() for value in base.values()):,}"
    cards = {
        tmp_path / "one.md": "exported in the public 1k layout",
        tmp_path / "imported/README.md": "one.safetensors, imported bit by bit",
        tmp_path / "merged/README.md": "1 trained tensors of delta.safetensors",
        model / "README.md": "by weight surgery; new ends: kaiming+detail",
    }
    for path, origin in cards.items():
        card = path.read_text(encoding="utf-8")
        assert card.startswith("---\nlibrary_name: diffusers\n")
        assert origin in card
        assert parameters in card
        assert "16 x 16 px" in card

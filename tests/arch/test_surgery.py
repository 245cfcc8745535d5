"""Surgery accounts for every tensor, inherits bytes unchanged, and leaves nothing behind when it fails."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from l2p_arch import ArchError, L2PPipeline, L2PTransformer, convert
from safetensors.torch import load_file, save_file

HEAD = (8, 8, 16, 16)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def converted(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("surgery") / "out"
    convert(untrained_source, out, head_channels=HEAD, seed=1)
    return out


@pytest.fixture
def source_copy(untrained_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained_source, tmp_path / "source"))


def test_the_report_accounts_for_every_tensor_of_source_and_result(
    converted: Path, untrained_source: Path
) -> None:
    report = json.loads((converted / "surgery_report.json").read_text())
    names = {label: {record["name"] for record in report[label]} for label in ("inherited", "new", "dropped")}
    source, result = (load_file(untrained_source / WEIGHTS), load_file(converted / WEIGHTS))
    assert {name.removeprefix("trunk.") for name in names["inherited"]} | names["dropped"] == set(source)
    assert names["inherited"] | names["new"] == set(result)
    assert not names["inherited"] & names["new"]
    assert names["dropped"] == {
        name for name in source if name.startswith(("all_x_embedder.", "all_final_layer."))
    }
    for name in names["inherited"]:
        assert torch.equal(result[name], source[name.removeprefix("trunk.")])


def test_a_copy_is_planned_without_torch(untrained_source: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import l2p_arch.surgery.convert\n"
        "from l2p_arch.surgery.source import open_source\n"
        "source = open_source(Path(sys.argv[1]))\n"
        "print(len(source.tensors), source.format.family, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(untrained_source)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    count = len(load_file(untrained_source / WEIGHTS))
    assert result.stdout.split() == [str(count), "z-image", "False"]


def test_the_result_loads_and_samples_and_holds_no_vae(converted: Path) -> None:
    assert not (converted / "vae").exists()
    pipeline = L2PPipeline.from_pretrained(converted)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a red circle", height=32, width=48, num_inference_steps=1, seeds=[0]).images
    assert images[0].size == (48, 32)


def test_shards_load_as_the_single_file_does(converted: Path, untrained_source: Path, tmp_path: Path) -> None:
    convert(untrained_source, tmp_path / "out", head_channels=HEAD, seed=1, max_shard_bytes=5 << 20)
    assert len(list((tmp_path / "out/transformer").glob("*-of-*.safetensors"))) > 3
    sharded = L2PTransformer.from_pretrained(tmp_path / "out/transformer").state_dict()
    single = L2PTransformer.from_pretrained(converted / "transformer").state_dict()
    assert sharded.keys() == single.keys()
    assert all(torch.equal(sharded[name], single[name]) for name in single)


@pytest.mark.parametrize(("size", "initialisation"), [("5GB", "default"), ("5MB", "fitted+gated")])
def test_weights_saved_as_a_variant_are_found_and_the_result_needs_no_variant(
    untrained_source: Path, tmp_path: Path, size: str, initialisation: str
) -> None:
    source = ZImagePipeline.from_pretrained(untrained_source)
    source.save_pretrained(tmp_path / "source", variant="fp16", max_shard_size=size)
    names = {path.name for path in tmp_path.glob("source/*/*.safetensors*")}
    assert all(".fp16" in name for name in names)
    assert any("-of-" in name for name in names) == (size == "5MB")
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    options: dict[str, Any] = {"head_channels": (16, *HEAD[1:]), "calibration_images": images}
    convert(tmp_path / "source", tmp_path / "out", initialisation=initialisation, **options)
    out = L2PPipeline.from_pretrained(tmp_path / "out")
    pairs = (
        (out.transformer.trunk.layers, source.transformer.layers),
        (out.text_encoder, source.text_encoder),
    )
    for ours, theirs in pairs:
        wanted = theirs.state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in ours.state_dict().items())


def test_plain_weights_go_along_where_a_variant_lies_beside_them(
    untrained_source: Path, tmp_path: Path
) -> None:
    encoder = ZImagePipeline.from_pretrained(untrained_source).text_encoder
    shutil.copytree(untrained_source, tmp_path / "source")
    shutil.rmtree(tmp_path / "source/text_encoder")
    encoder.save_pretrained(tmp_path / "source/text_encoder", max_shard_size="1MB")
    wanted = {key: value.clone() for key, value in encoder.state_dict().items()}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(7)
    encoder.save_pretrained(tmp_path / "variant", variant="fp16")
    for path in (tmp_path / "variant").glob("*.safetensors"):
        shutil.copy(path, tmp_path / "source/text_encoder")
    convert(tmp_path / "source", tmp_path / "out", head_channels=HEAD)
    found = L2PPipeline.from_pretrained(tmp_path / "out").text_encoder.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())


def test_new_tensors_of_an_8_bit_source_are_bfloat16(source_copy: Path, tmp_path: Path) -> None:
    tensors = {
        name: value.to(torch.float8_e4m3fn) for name, value in load_file(source_copy / WEIGHTS).items()
    }
    save_file(tensors, source_copy / WEIGHTS)
    report = convert(source_copy, tmp_path / "out", head_channels=HEAD)
    assert {record.dtype for record in report.inherited} == {"F8_E4M3"}
    assert {record.dtype for record in report.new} == {"BF16"}


def test_an_8_bit_source_may_become_16_bits_wide(source_copy: Path, tmp_path: Path) -> None:
    tensors = {
        name: value.to(torch.float8_e4m3fn) for name, value in load_file(source_copy / WEIGHTS).items()
    }
    save_file(tensors, source_copy / WEIGHTS)
    convert(source_copy, tmp_path / "out", head_channels=HEAD, dtype="float16")
    found = load_file(tmp_path / "out" / WEIGHTS)["trunk.layers.0.attention.to_q.weight"]
    assert torch.equal(found, tensors["layers.0.attention.to_q.weight"].half())


def test_what_float16_cannot_hold_is_not_made_infinite(source_copy: Path, tmp_path: Path) -> None:
    edit_weights(lambda tensors: tensors["layers.0.attention.to_q.weight"].fill_(70_000))(source_copy)
    convert(source_copy, tmp_path / "out", head_channels=HEAD, dtype="bfloat16")
    with pytest.raises(ArchError, match=r"to_q\.weight has values beyond float16's 65504; use bfloat16"):
        convert(source_copy, tmp_path / "half", head_channels=HEAD, dtype="float16")


def two_variants(source: Path) -> None:
    (source / WEIGHTS).rename(source / "transformer/diffusion_pytorch_model.fp16.safetensors")
    shutil.copy(
        source / "transformer/diffusion_pytorch_model.fp16.safetensors",
        source / "transformer/diffusion_pytorch_model.bf16.safetensors",
    )


def test_a_model_saved_and_loaded_again_is_the_same(converted: Path, tmp_path: Path) -> None:
    model = L2PTransformer.from_pretrained(converted / "transformer")
    model.save_pretrained(tmp_path / "again")
    again = L2PTransformer.from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert again.block_names() == model.block_names() == [f"trunk.layers.{n}" for n in range(6)]


def test_the_seed_alone_decides_the_new_tensors(
    converted: Path, untrained_source: Path, tmp_path: Path
) -> None:
    torch.manual_seed(123)
    convert(untrained_source, tmp_path / "same", head_channels=HEAD, seed=1)
    convert(untrained_source, tmp_path / "other", head_channels=HEAD, seed=2)
    first, same, other = (
        load_file(path / WEIGHTS) for path in (converted, tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["detailer_head.enc1.0.weight"], other["detailer_head.enc1.0.weight"])


def test_a_dtype_casts_every_tensor(untrained_source: Path, tmp_path: Path) -> None:
    report = convert(untrained_source, tmp_path / "out", head_channels=HEAD, dtype="bfloat16")
    result, source = (load_file(tmp_path / "out" / WEIGHTS), load_file(untrained_source / WEIGHTS))
    assert {value.dtype for value in result.values()} == {torch.bfloat16}
    assert {record.dtype for record in (*report.inherited, *report.new)} == {"BF16"}
    assert torch.equal(result["trunk.x_pad_token"], source["x_pad_token"].bfloat16())


def test_zero_output_starts_from_a_velocity_of_zero(untrained_source: Path, tmp_path: Path) -> None:
    convert(untrained_source, tmp_path / "out", head_channels=HEAD, initialisation="zero-output")
    model = L2PTransformer.from_pretrained(tmp_path / "out/transformer")
    with torch.no_grad():
        velocity = model(torch.randn(1, 3, 32, 32), torch.tensor([0.5]), [{"caption": torch.randn(4, 128)}])
    assert not velocity.any()


def test_detail_starts_from_the_fine_detail_of_its_input(untrained_source: Path, tmp_path: Path) -> None:
    convert(untrained_source, tmp_path / "out", head_channels=HEAD, initialisation="detail")
    model = L2PTransformer.from_pretrained(tmp_path / "out/transformer")
    x_t = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        velocity = model(x_t, torch.tensor([0.5]), [{"caption": torch.randn(4, 128)}])
    mean = torch.nn.functional.avg_pool2d(
        x_t, 3, stride=1, padding=1
    )  # zeros beyond the border, as a convolution
    torch.testing.assert_close(velocity, x_t - mean, rtol=1e-5, atol=1e-5)


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(source: Path) -> None:
        tensors = load_file(source / WEIGHTS)
        change(tensors)
        save_file(tensors, source / WEIGHTS)

    return edit


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda source: (
        (source / name).write_text(json.dumps(json.loads((source / name).read_text()) | changes)),
        None,
    )[1]


def truncate(source: Path) -> None:
    data = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(data[:-100])


def pickle_instead(source: Path) -> None:
    (source / WEIGHTS).unlink()
    torch.save({}, source / "transformer/diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (shutil.rmtree, "is not a directory"),
        (lambda source: (source / "model_index.json").unlink(), "no diffusers pipeline directory"),
        (lambda source: (source / "model_index.json").write_text("{"), "not valid JSON"),
        (lambda source: shutil.rmtree(source / "transformer"), "no transformer"),
        (lambda source: shutil.rmtree(source / "text_encoder"), "lacks text_encoder"),
        (edit_json("transformer/config.json", _class_name="UNet2DConditionModel"), "no family for"),
        (edit_json("transformer/config.json", dim=48), "no valid ZImageTransformer2DModel config"),
        (edit_json("transformer/config.json", n_heads=0), "no valid ZImageTransformer2DModel config"),
        (edit_json("transformer/config.json", n_layers=7), "lacks layers.6."),
        (edit_json("transformer/config.json", n_layers=5), "have no place in a z-image model: layers.5."),
        (edit_json("transformer/config.json", cap_feat_dim=64), "its config says"),
        (edit_weights(lambda t: t.pop("x_pad_token")), "lacks x_pad_token"),
        (
            edit_weights(lambda t: t.update(surprise=torch.zeros(1))),
            "1 tensors have no place in a z-image model",
        ),
        (
            edit_weights(lambda t: [t.pop(n) for n in list(t) if n.startswith("all_")]),
            "has no latent ends (all_x_embedder, all_final_layer)",
        ),
        (truncate, "is cut off"),
        (pickle_instead, "pickled weights"),
        (
            edit_weights(
                lambda t: t.update({"layers.0.attention.to_q.weight": torch.zeros(4).to(torch.int8)})
            ),
            "layers.0.attention.to_q.weight is stored as I8, quantised",
        ),
        (edit_json("model_index.json", text_encoder=[]), "text_encoder is []; wanted [library, class]"),
        (edit_json("model_index.json", transformer={"a": 1}), "transformer is {'a': 1}; wanted [library"),
        (lambda source: (source / "tokenizer/gone").symlink_to("nowhere"), "gone"),
        (two_variants, "holds the variants bf16, fp16 and no plain weights; keep one of them"),
        (lambda source: (source / WEIGHTS).write_bytes(b"<html>not found</html>"), "not a safetensors file"),
    ],
)
def test_a_wrong_source_is_named_and_nothing_is_written(
    source_copy: Path, tmp_path: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    damage(source_copy)
    with pytest.raises(ArchError) as raised:
        convert(source_copy, tmp_path / "out", head_channels=HEAD)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_pixel_model_is_not_operated_on_twice(converted: Path, tmp_path: Path) -> None:
    L2PPipeline.from_pretrained(converted).save_pretrained(tmp_path / "saved")
    for model in (converted, tmp_path / "saved"):
        with pytest.raises(ArchError, match="already a pixel-space model"):
            convert(model, tmp_path / "out")


@pytest.mark.parametrize("out", ["x", "run/model", "vae/../y"])
def test_nothing_is_written_into_the_source(
    source_copy: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """A folder that comes into a model changes what the model is known by."""
    before = sorted(source_copy.rglob("*"))
    monkeypatch.chdir(source_copy)
    with pytest.raises(ArchError, match="which is read; choose a place outside of it"):
        convert(".", out, head_channels=HEAD)
    assert sorted(source_copy.rglob("*")) == before


def test_files_that_are_no_variants_keep_their_names(source_copy: Path, tmp_path: Path) -> None:
    """Some encoders bring their original files beside those that are loaded."""
    for name in ("consolidated.00.safetensors", "consolidated.01.safetensors"):
        save_file({"x": torch.zeros(1)}, source_copy / "text_encoder" / name)
    convert(source_copy, tmp_path / "out", head_channels=HEAD)
    names = {path.name for path in (tmp_path / "out/text_encoder").iterdir()}
    assert names == {path.name for path in (source_copy / "text_encoder").iterdir()}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"initialisation": "magic"}, "unknown initialisation 'magic'"),
        ({"dtype": "int8"}, "dtype 'int8' is not one of"),
        ({"head_channels": (8, 0)}, "positive widths"),
        ({"patch_size": 0}, "patch size 0"),
        ({"head_channels": (3, 16), "initialisation": "detail"}, "at least 6 channels"),
    ],
)
def test_wrong_options_are_named(
    untrained_source: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ArchError, match=complaint):
        convert(untrained_source, tmp_path / "out", **options)

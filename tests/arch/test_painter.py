"""The one door to a model: what it finds, what it refuses in one line, and what it paints."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, convert, export_public
from l2p_arch.sampling.painter import (
    Painter,
    Sampling,
    find_model,
    find_pixel_model,
    load_pipeline,
    paint_images,
    sampling_defaults,
)
from safetensors.torch import load_file, save_file

SMALL = {"height": 32, "width": 64, "num_inference_steps": 2, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, untrained_source: Path) -> Path:
    """An L2P model in two shards, and its sampling.json."""
    model = tmp_path_factory.mktemp("sound") / "model"
    convert(untrained_source, model, head_channels=(8, 8, 16, 16), max_shard_bytes=15 << 20)
    (model / "sampling.json").write_text(json.dumps({"height": 48, "guidance_scale": 3}))
    return model


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def test_every_kind_of_model_is_found(
    sound: Path, untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(sound)
    (tmp_path / "trained" / "train").mkdir(parents=True)
    (tmp_path / "trained" / "train" / "model").symlink_to(sound)
    for path, name in ((sound, "model"), (tmp_path / "run", "run"), (tmp_path / "trained", "trained")):
        found = find_model(path)
        assert (found.pixel, found.name, found.patch_size) == (True, name, 16)
        assert found.directory.resolve() == sound.resolve()
    source = find_model(untrained_source)
    assert (source.directory, source.pixel) == (untrained_source, False)
    with pytest.raises(ArchError, match="is no L2P model"):
        find_pixel_model(untrained_source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "published.safetensors"
    export_public(sound, file)
    imports: list[Path] = []
    with pytest.raises(ArchError, match="brings no text encoder; add --components"):
        find_model(file)
    for _ in range(2):
        found = find_model(file, untrained_source, on_import=imports.append)
    assert (found.name, found.directory, len(imports)) == ("published.safetensors", imports[0], 1)


def test_a_single_file_that_was_exchanged_is_imported_again(
    sound: Path, untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of the same size and time, as `cp -p` and `touch -r` leave it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "published.safetensors"
    export_public(sound, file)
    first = find_model(file, untrained_source).directory
    before, times = file.read_bytes(), file.stat()
    weights = sorted((first / "transformer").glob("*.safetensors"))
    tensors = [path.read_bytes() for path in weights]
    file.write_bytes(before[:-4] + b"\0\0\0\0")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == len(before) and file.read_bytes() != before
    imports: list[Path] = []
    for _ in range(2):
        assert find_model(file, untrained_source, on_import=imports.append).directory == first
    assert imports == [first]
    assert [path.read_bytes() for path in weights] != tensors


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent", "absent does not exist; give a run directory"),
        ("empty", "empty holds no model_index.json"),
        ("begun", "the run .*begun has no trained model yet"),
        ("n" * 300, "cannot be looked at: .*File name too long"),
        ("nul\0", "does not exist"),
    ],
)
def test_what_is_no_model_is_said(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.toml").touch()
    with pytest.raises(ArchError, match=message):
        find_model(tmp_path / path)


def _index(**changes: Any) -> Callable[[Path], None]:
    return _json("model_index.json", **changes)


def _json(name: str, **changes: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        path = model / name
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value != "REMOVED"}))

    return damage


def _text(name: str, content: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_text(content) and None


def _remove(name: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        shutil.rmtree(model / name) if (model / name).is_dir() else (model / name).unlink()

    return damage


def _cut(folder: str, keep: float) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        file = sorted((model / folder).glob("*.safetensors"))[-1]
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])

    return damage


def _pickled(folder: str, name: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        for file in (model / folder).glob("*.safetensors*"):
            file.unlink()
        torch.save({"weight": torch.zeros(2)}, model / folder / name)

    return damage


def _without_a_tensor(folder: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        file = sorted((model / folder).glob("*.safetensors"))[0]
        tensors = load_file(file)
        del tensors[max(tensors)]
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def _unnamed_tensor(model: Path) -> None:
    _without_a_tensor("transformer")(model)
    index = json.loads((model / SHARDS).read_text())["weight_map"]
    held = {key for file in (model / "transformer").glob("*.safetensors") for key in load_file(file)}
    _json(SHARDS, weight_map={key: file for key, file in index.items() if key in held})(model)


def _widened(model: Path) -> None:
    _json("transformer/config.json", head_channels=[8, 8, 16, 32])(model)


SHARDS = "transformer/diffusion_pytorch_model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_text("model_index.json", "{"), "model_index.json is not valid JSON"),
        (_text("model_index.json", "[1]"), "model_index.json is not a JSON object"),
        (_text("model_index.json", '"L2PPipeline"'), "model_index.json is not a JSON object"),
        (_text("model_index.json", "[" * 5000), "model_index.json is not valid JSON"),
        (_text("model_index.json", "{}"), "model_index.json names no pipeline"),
        (_index(_class_name=7), "model_index.json names no pipeline"),
        (_index(_class_name=["my_pipeline", "Mine"]), "its own code, which is never run"),
        (_index(transformer=["my_module", "Mine"]), 'transformer is of "my_module", whose code is never run'),
        (_index(scheduler="Euler"), 'scheduler is "Euler"; wanted'),
        (_index(scheduler=["diffusers"]), "wanted .library, class."),
        (_index(scheduler=["diffusers", "NoSuchScheduler"]), "cannot be loaded"),
        (_index(scheduler=["os", "system"]), "whose code is never run"),
        (_index(**{"../up": ["diffusers", "AutoencoderKL"]}), "which lies elsewhere"),
        (_index(vae=["diffusers", "AutoencoderKL"]), "lacks vae/, which its model_index.json names"),
        (_remove("tokenizer"), "lacks tokenizer/"),
        (_remove("tokenizer/tokenizer.json"), "has no tokenizer.json"),
        (_text("tokenizer/tokenizer.json", "{}"), "cannot be loaded"),
        (_remove("scheduler/scheduler_config.json"), "has no config"),
        (_text("scheduler/scheduler_config.json", "nul"), "scheduler_config.json is not valid JSON"),
        (_json("scheduler/scheduler_config.json", num_train_timesteps="many"), "cannot be loaded"),
        (_remove("transformer/config.json"), "there is no .*config.json"),
        (_text("transformer/config.json", "{}"), "config.json is damaged: family is missing"),
        (_text("transformer/config.json", "5"), "config.json is not a JSON object"),
        (_json("transformer/config.json", patch_size="16"), 'patch_size is "16"; wanted a number of pixels'),
        (_json("transformer/config.json", patch_size=0), "patch_size is 0; wanted a number of pixels"),
        (_json("transformer/config.json", patch_size=-32), "patch_size is -32; wanted"),
        (_json("transformer/config.json", patch_size=True), "patch_size is true; wanted"),
        (_json("transformer/config.json", patch_size=8.0), "patch_size is 8.0; wanted"),
        (_json("transformer/config.json", patch_size=32), "(cannot be loaded|another shape|lack)"),
        (_json("transformer/config.json", family="z-imag"), 'family is "z-imag"; wanted one of z-image'),
        (_json("transformer/config.json", family=["z-image"]), "family is .*; wanted one of z-image"),
        (_json("transformer/config.json", head_channels="wide"), "wanted a list of widths"),
        (_json("transformer/config.json", head_channels=[8, -1]), "wanted a list of widths"),
        (_json("transformer/config.json", trunk_config=None), "wanted the source transformer's config"),
        (_json("transformer/config.json", trunk_config={"dim": "x"}), "no valid ZImageTransformer2DModel"),
        (_widened, "(cannot be loaded|another shape|lack)"),
        (_cut("transformer", 0.6), "is cut off: .*fetch it again"),
        (_cut("transformer", 0), "safetensors is empty; fetch or write the model again"),
        (_cut("text_encoder", 0.99), "is cut off: .*fetch it again"),
        (_without_a_tensor("transformer"), "index.json names .*, which .*safetensors does not hold"),
        (_unnamed_tensor, "lack 1 of the tensors that its config describes, such as"),
        (_without_a_tensor("text_encoder"), "lack 1 of the tensors that its config describes, such as"),
        (_remove("text_encoder/model.safetensors"), "text_encoder has no weights"),
        (_pickled("text_encoder", "pytorch_model.bin"), "pickled weights .*; save it as safetensors"),
        (_pickled("transformer", "diffusion_pytorch_model.bin"), "pickled weights"),
        (_pickled("transformer", "old.ckpt"), "pickled weights"),
        (_json(SHARDS, weight_map={"a": "../../elsewhere.safetensors"}), "is not a file beside it"),
        (_json(SHARDS, weight_map={"a": "/etc/hostname"}), "is not a file beside it"),
        (_json(SHARDS, weight_map=[1]), "holds no weight_map"),
        (_json(SHARDS, weight_map={"a": 5}), "holds no weight_map"),
        (_json(SHARDS, weight_map={"a": "other.safetensors"}), "lacks other.safetensors"),
        (_text("text_encoder/config.json", "{}"), r"describes a network of [0-9,]+ parameters, and"),
        (_text("text_encoder/config.json", '{"model_type": "qwen3"}'), "describes a network of"),
    ],
)  # fmt: skip
def test_a_damaged_directory_is_one_line(model: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(model)
    with pytest.raises(ArchError, match=message) as raised:
        load_pipeline(find_model(model).directory, device="cpu", dtype="float32")
    assert len(str(raised.value)) < 500
    assert "\n" not in str(raised.value)


def test_code_that_a_model_brings_is_never_run(model: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Mine: pass\n"
    for name in ("my_module.py", "pipeline.py", "text_encoder/modeling_own.py"):
        (model / name).write_text(code)
    config = model / "text_encoder" / "config.json"
    auto_map = {"AutoModel": "modeling_own.Mine", "AutoConfig": "modeling_own.Mine"}
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": auto_map}))
    load_pipeline(model, device="cpu", dtype="float32")
    for entry in (["my_module", "Mine"], ["pipeline", "Mine"]):
        _index(text_encoder=entry)(model)
        with pytest.raises(ArchError, match="whose code is never run"):
            load_pipeline(model, device="cpu", dtype="float32")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": "abc"}, "height is 'abc'; it must be a whole number from 1 to 65536"),
        ({"width": 64.5}, "width is 64.5; it must be a whole number"),
        ({"num_inference_steps": True}, "num_inference_steps is True; it must be a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": None}, "num_inference_steps is None"),
        ({"guidance_scale": [2]}, r"guidance_scale is \[2\]; it must be a number"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"noise_shift": 0}, "noise_shift is 0"),
        ({"distilled_guidance_scale": -1e400}, "distilled_guidance_scale is -inf"),
        ({"height": 10**40}, "a number of more than 30 digits"),
        ([1], "is not a JSON object"),
        (None, "is not a JSON object"),
    ],
)
def test_sampling_of_wrong_types_is_one_line_that_names_the_file(
    tmp_path: Path, values: Any, message: str
) -> None:
    (tmp_path / "sampling.json").write_text(json.dumps(values))
    with pytest.raises(ArchError, match=message) as raised:
        sampling_defaults(tmp_path)
    assert "sampling.json" in str(raised.value)
    assert "mend it, or delete it to use general defaults" in str(raised.value)


def test_a_model_brings_its_own_sampling(sound: Path, untrained_source: Path) -> None:
    assert sampling_defaults(sound) == Sampling(height=48, guidance_scale=3)
    assert sampling_defaults(untrained_source) == Sampling()
    assert "noise_shift" not in Sampling().options


@pytest.mark.parametrize("latent", [False, True])
def test_a_painter_travels_and_paints_an_image_of_its_seed(
    sound: Path, untrained_source: Path, latent: bool
) -> None:
    painter = Painter(directory=untrained_source if latent else sound, dtype="float32", options=SMALL)
    paint = pickle.loads(pickle.dumps(painter))("cpu")
    first, second = paint(["a ring", "two red circles"], [1, 2])
    assert first.size == (64, 32)
    alone = paint(["two red circles"], [2])[0]
    pairs = zip(second.tobytes(), alone.tobytes(), strict=True)
    assert max(abs(one - two) for one, two in pairs) <= 1


def test_an_option_that_the_pipeline_lacks_is_said_before_painting(untrained_source: Path) -> None:
    painter = Painter(directory=untrained_source, dtype="float32", options={"noise_shift": 3.0})
    with pytest.raises(ArchError, match="ZImagePipeline takes no noise_shift; leave the option out"):
        painter("cpu")


def test_a_device_that_is_not_there_is_one_line(sound: Path) -> None:
    for device in ("cuda:99", "gpu"):
        with pytest.raises(ArchError, match=f"the device {device} cannot be used: ") as raised:
            load_pipeline(sound, device=device, dtype="float32")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("latent", [False, True])
def test_nan_and_infinity_never_become_a_picture(
    model: Path, untrained_source: Path, number: float, latent: bool
) -> None:
    pipeline = load_pipeline(untrained_source if latent else model, device="cpu", dtype="float32")
    part = pipeline.vae.decoder if latent else pipeline.transformer.detailer_head
    with torch.no_grad():
        list(part.parameters())[-1].fill_(number)
    with pytest.raises(ArchError, match="NaN or infinity"):
        paint_images(pipeline, ["a ring"], [1], **SMALL)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "chat_template.jinja is empty"),
        ("<|im_start|>", "leaves the prompt out"),
        ("{% for message in messages %}{{ message['role'] }}{% endfor %}", "leaves the prompt out"),
    ],
)
def test_a_chat_template_without_the_prompt_paints_nothing_else_instead(
    model: Path, template: str, said: str
) -> None:
    """What a full disk leaves of it. Without the check every picture was of the template alone."""
    (model / "tokenizer" / "chat_template.jinja").write_text(template)
    with pytest.raises(ArchError, match=said) as caught:
        paint_images(load_pipeline(model, device="cpu", dtype="float32"), ["a ring"], [1], **SMALL)
    assert "\n" not in str(caught.value)

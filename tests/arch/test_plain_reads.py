"""`disable_mmap`: the same weights by plain reads, with no file of them in the process's memory maps."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import L2PPipeline, L2PTransformer, convert
from l2p_arch.cli import main
from l2p_arch.files.mapping import VARIABLE, memory_maps, mmap_disabled, unmapped
from l2p_arch.sampling.loading import load_pipeline
from l2p_mini.architecture import write_untrained_source

MAPS = Path("/proc/self/maps")
OPTIONS: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
linux_only = pytest.mark.skipif(not MAPS.is_file(), reason="the kernel's list of memory maps is Linux's")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_source(tmp_path_factory.mktemp("source") / "source", seed=3)


@pytest.fixture(scope="module")
def model(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model"
    convert(source, out, patch_size=16, head_channels=(8, 8, 8, 8), seed=1)
    return out


def mapped(folder: Path) -> set[str]:
    gc.collect()
    lines = MAPS.read_text().splitlines()
    return {line.split("/")[-1] for line in lines if str(folder) in line and ".safetensors" in line}


@linux_only
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_transformer_is_loaded_alike_and_unmapped(
    model: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = L2PTransformer.from_pretrained(model / "transformer", **OPTIONS)
    assert mapped(model)  # else the rest would prove nothing
    wanted = {name: value.clone() for name, value in usual.state_dict().items()}
    del usual
    if by == "environment":
        monkeypatch.setenv(VARIABLE, "1")
        plain = L2PTransformer.from_pretrained(model / "transformer", **OPTIONS)
    else:
        plain = L2PTransformer.from_pretrained(model / "transformer", disable_mmap=True, **OPTIONS)
    assert not mapped(model)
    assert all(torch.equal(value, wanted[name]) for name, value in plain.state_dict().items())


@linux_only
def test_a_whole_pipeline_is_loaded_unmapped_text_encoder_included(model: Path) -> None:
    usual = load_pipeline(model, device="cpu", dtype="float32")
    assert mapped(model / "text_encoder")
    wanted = {name: value.clone() for name, value in usual.text_encoder.state_dict().items()}
    del usual
    plain = load_pipeline(model, device="cpu", dtype="float32", disable_mmap=True)
    assert not mapped(model)
    assert all(torch.equal(value, wanted[name]) for name, value in plain.text_encoder.state_dict().items())


@linux_only
def test_what_is_handed_to_a_pipeline_leaves_nothing_for_it_to_map(
    model: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import DiffusionPipeline

    assert unmapped(model) == {}
    monkeypatch.setenv(VARIABLE, "yes")
    ours = L2PPipeline.from_pretrained(model, transformer=None, **OPTIONS, **unmapped(model))
    theirs = DiffusionPipeline.from_pretrained(source, **OPTIONS, **unmapped(source))
    assert not mapped(model) and not mapped(source)
    assert ours.text_encoder is not None and theirs.vae is not None


@linux_only
def test_a_painters_worker_loads_its_source_unmapped(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from l2p_data.synthesis.plain_reads import unmapped as for_painting

    assert for_painting(source, torch.float32) == {}
    monkeypatch.setenv(VARIABLE, "1")
    handed = for_painting(source, torch.float32)
    assert handed.pop("disable_mmap") is True and set(handed) == {"text_encoder"}
    assert not mapped(source)


@linux_only
def test_the_trainers_own_files_are_read_unmapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from l2p_train.machine.tensors import open_tensors, save_tensors

    save_tensors({"a": torch.arange(5000.0)}, tmp_path / "x.safetensors", metadata={"of": "test"})
    usual = open_tensors(tmp_path / "x.safetensors")
    assert mapped(tmp_path)
    del usual
    monkeypatch.setenv(VARIABLE, "1")
    plain = open_tensors(tmp_path / "x.safetensors")
    assert torch.equal(plain.get_tensor("a"), torch.arange(5000.0)) and not mapped(tmp_path)
    assert plain.metadata()["of"] == "test"


def test_surgery_gives_the_same_bytes_and_hands_the_switch_to_what_it_loads(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    from PIL import Image

    for number in range(3):
        Image.radial_gradient("L").convert("RGB").rotate(40 * number).save(pictures / f"{number}.png")
    ends = ["--head-channels", "8", "8", "8", "8", "--images", str(pictures), "--image-size", "64"]
    said: list[bool] = []
    from diffusers import AutoencoderKL

    load = AutoencoderKL.from_pretrained
    monkeypatch.setattr(
        AutoencoderKL,
        "from_pretrained",
        lambda *args, **options: said.append(options.get("disable_mmap", False)) or load(*args, **options),
    )
    assert main(["convert", str(source), str(tmp_path / "mapped"), *ends]) == 0
    assert main(["convert", "--disable-mmap", str(source), str(tmp_path / "plain"), *ends]) == 0
    assert said[0] is False and said[-1] is True
    weights = [
        tmp_path / kind / "transformer" / "diffusion_pytorch_model.safetensors"
        for kind in ("mapped", "plain")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_nearest_says_whether_maps_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, disabled in (
        ("", False),
        ("0", False),
        ("no", False),
        ("False", False),
        ("1", True),
        ("on", True),
    ):
        monkeypatch.setenv(VARIABLE, value)
        assert mmap_disabled() is disabled
    assert mmap_disabled(False) is False  # an argument goes before the environment
    with memory_maps(disabled=False):
        assert mmap_disabled() is False and mmap_disabled(True) is True
        with memory_maps(disabled=None):
            assert mmap_disabled() is False
    assert mmap_disabled() is True

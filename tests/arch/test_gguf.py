"""GGUF files hold what the model holds: read back by gguf's own reader."""

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from l2p_arch import ArchError, L2PTransformer, convert, export_gguf, export_public, identify, import_public
from l2p_arch.cli import main
from safetensors.torch import load_file

PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(
    request: pytest.FixtureRequest, untrained_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "model"
    convert(untrained_source, out, head_channels=(8, 8, 8, 8), seed=3, dtype=request.param)
    return out


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], gguf.GGUFReader]:
    """Values, ggml types, and the reader, by gguf's own means."""
    reader = gguf.GGUFReader(path)
    values, kinds = {}, {}
    for tensor in reader.tensors:
        shape = [int(side) for side in reversed(tensor.shape)]
        dense = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values[tensor.name] = torch.from_numpy(np.array(dense, np.float32)).reshape(shape)
        kinds[tensor.name] = tensor.tensor_type.name
    return values, kinds, reader


def wanted(model: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The same model by ComfyUI's names, which another test holds to be the model's."""
    export_public(model, folder / "c.safetensors", comfyui=True)
    return {name.removeprefix(PREFIX): value for name, value in load_file(folder / "c.safetensors").items()}


def test_every_value_comes_back_bit_by_bit(model: Path, tmp_path: Path) -> None:
    assert main(["export", str(model), str(tmp_path / "m.gguf"), "--layout", "gguf"]) == 0
    values, kinds, reader = read(tmp_path / "m.gguf")
    ours = wanted(model, tmp_path)
    assert values.keys() == ours.keys()
    for name, value in ours.items():
        assert torch.equal(values[name], value.float()), name
        small = value.ndim == 1 or name.endswith("pad_token")
        assert kinds[name] == ("F32" if small or value.dtype == torch.float32 else "BF16"), name
    assert reader.fields["general.architecture"].contents() == "lumina2"
    assert reader.fields["l2p.layout"].contents() == "1k"
    assert max(map(len, values)) < 64  # ggml's own limit


def test_eight_bits_are_within_half_a_step_and_only_in_the_blocks(model: Path, tmp_path: Path) -> None:
    made = export_gguf(model, tmp_path / "q.gguf", kind="q8_0")
    values, kinds, _ = read(tmp_path / "q.gguf")
    ours = wanted(model, tmp_path)
    eight = {name for name in kinds if kinds[name] == "Q8_0"}
    assert len(eight) == made["quantised"] > 10
    assert all(".attention." in name or ".feed_forward." in name for name in eight)
    assert not any("norm" in name for name in eight)
    for name, value in ours.items():
        if name not in eight:
            assert torch.equal(values[name], value.float()), name
            continue
        blocks = value.float().reshape(-1, 32)
        step = blocks.abs().amax(dim=1, keepdim=True) / 127
        off = (values[name].reshape(-1, 32) - blocks).abs()
        assert bool((off <= step * (0.5 + 127 * 2**-11) + 1e-7).all()), name  # a step is rounded to float16
        assert float(off.max()) > 0, name


@pytest.mark.parametrize(("kind", "dtype"), [("f32", "F32"), ("bf16", "BF16"), ("f16", "F16")])
def test_a_cast_is_torchs(model: Path, tmp_path: Path, kind: str, dtype: str) -> None:
    export_gguf(model, tmp_path / "m.gguf", kind=kind)
    values, kinds, _ = read(tmp_path / "m.gguf")
    torch_dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
    for name, value in wanted(model, tmp_path).items():
        if kinds[name] == dtype and value.ndim > 1 and not name.endswith("pad_token"):
            assert torch.equal(values[name], value.to(torch_dtype).float()), name
    assert sum(each == dtype for each in kinds.values()) > 20


def test_who_cannot_read_it_is_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(model), str(tmp_path / "m.gguf"), "--layout", "gguf", "--kind", "q8_0"]) == 0
    said = capsys.readouterr().out
    assert "in q8_0" in said and "head of the widths (64, 128, 256, 512) only; this is (8, 8, 8, 8)" in said
    assert identify(tmp_path / "m.gguf") == "a GGUF file, which l2p-arch writes and does not read"
    with pytest.raises(ArchError, match="is a GGUF file, which l2p-arch writes and does not read"):
        import_public(tmp_path / "m.gguf", model, tmp_path / "back")


def _cast(model: Path, out: Path, dtype: torch.dtype, value: float = 1.0) -> Path:
    """The model with one weight of the head set to `value` and stored in another dtype."""
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(model, out)
    file = next((out / "transformer").glob("*.safetensors"))
    tensors: dict[str, Any] = load_file(file)
    name = "detailer_head.out_conv.weight"
    tensors[name] = torch.full_like(tensors[name], value).to(dtype)
    save_file(tensors, file, {"format": "pt"})
    return out


def test_what_gguf_cannot_hold_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from l2p_mini.paths import PIXEL_MODEL, SOURCE_MODEL

    eight = _cast(model, tmp_path / "eight", torch.float8_e4m3fn)
    large = _cast(model, tmp_path / "large", torch.float32, 1e6)
    for arguments, words in (
        ([str(PIXEL_MODEL)], "is of the aligned recipe, and the public layouts hold the paper's alone"),
        ([str(eight)], "local_decoder.out_conv.weight is stored as F8_E4M3, which GGUF does not know"),
        ([str(large), "--kind", "f16"], "has values beyond float16's 65504"),
        ([str(SOURCE_MODEL)], "error: "),
        ([str(tmp_path / "nothing")], "error: "),
    ):
        target = tmp_path / "m.gguf"
        assert main(["export", arguments[0], str(target), "--layout", "gguf", *arguments[1:]]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
        assert not target.exists()
    assert main(["export", str(model), str(tmp_path / "m.safetensors"), "--kind", "q8_0"]) == 2
    assert "--kind is of GGUF files; add --layout gguf" in capsys.readouterr().err
    with pytest.raises(ArchError, match="GGUF kind 'q4_k' is not one of"):
        export_gguf(model, tmp_path / "m.gguf", kind="q4_k")


def test_a_file_that_is_there_is_replaced_on_request_only(model: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(ArchError, match="exists"):
        export_gguf(model, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"
    export_gguf(model, tmp_path / "m.gguf", overwrite=True)
    assert len(read(tmp_path / "m.gguf")[0]) > 50


def test_without_the_package_the_extra_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ArchError, match=r'need the package gguf: pip install "l2p-arch\[gguf\]"'):
        export_gguf(model, tmp_path / "m.gguf")


def test_a_head_of_the_published_widths_has_no_note(untrained_source: Path, tmp_path: Path) -> None:
    convert(untrained_source, tmp_path / "model", head_channels=(64, 128, 256, 512))
    made = export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert made["notes"] == []
    trunk = L2PTransformer.from_pretrained(tmp_path / "model/transformer").state_dict()
    values, _, _ = read(tmp_path / "m.gguf")
    rows = trunk["trunk.layers.0.attention.to_q.weight"]
    assert torch.equal(values["layers.0.attention.qkv.weight"][: len(rows)], rows)
    assert torch.equal(
        values["local_decoder.bottleneck.0.weight"], trunk["detailer_head.bottleneck.0.weight"]
    )

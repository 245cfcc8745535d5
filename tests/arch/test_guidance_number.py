"""A model that takes its guidance as a number: kept in its files, painted with in one pass, and refused where
there is no place for it."""

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, L2PPipeline, L2PTransformer, convert, export_public, quantise, upscale
from l2p_arch.files.delta import merge_delta, save_delta
from l2p_arch.gguf_models import export_gguf
from l2p_arch.sampling.painter import find_pixel_model
from l2p_mini.paths import PIXEL_MODEL
from torch import Tensor

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}


def learned(model: L2PTransformer) -> L2PTransformer:
    model.take_guidance(1, 4)
    assert model.guidance_embedder is not None
    generator = torch.Generator().manual_seed(2)
    torch.nn.init.normal_(model.guidance_embedder.out.weight, std=0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def student(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of the paper's recipe, in one shard."""
    out = tmp_path_factory.mktemp("number") / "student"
    convert(untrained_source, out, head_channels=(8, 8, 8, 8), initialisation="kaiming")
    learned(L2PTransformer.from_pretrained(out / "transformer")).save_pretrained(out / "transformer")
    return out


@pytest.fixture(scope="module")
def pipeline(student: Path) -> L2PPipeline:
    loaded = L2PPipeline.from_pretrained(student)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def inputs(model: Any, *scales: float) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    width = model.config["trunk_config"]["cap_feat_dim"]
    texts = [torch.randn(4, width, generator=generator) for _ in scales]
    return (
        torch.randn(len(scales), 3, 32, 32, generator=generator),
        torch.full((len(scales),), 0.6),
        [{"caption": text, "guidance": torch.tensor(w)} for text, w in zip(texts, scales, strict=True)],
    )


@torch.no_grad()
def test_the_number_survives_saving_loading_and_copying(student: Path, tmp_path: Path) -> None:
    model = L2PTransformer.from_pretrained(student / "transformer").eval()
    config = json.loads((student / "transformer" / "config.json").read_text())
    assert config["guidance_range"] == [1.0, 4.0] == list(model.guidance_range)
    wanted = model(*inputs(model, 1.0, 3.5))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert torch.equal(L2PTransformer.from_pretrained(tmp_path).eval()(*inputs(model, 1.0, 3.5)), wanted)
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.guidance_embedder.out.weight)  # the copy hears its own embedder, not this one
    assert torch.equal(model(*inputs(model, 1.0, 3.5)), wanted)
    assert not torch.equal(other(*inputs(model, 1.0, 3.5)), wanted)


@torch.no_grad()
def test_each_sample_of_a_batch_hears_its_own(student: Path) -> None:
    model = L2PTransformer.from_pretrained(student / "transformer").eval()
    pixels, sigma, samples = inputs(model, 1.0, 4.0, 2.0)
    together = model(pixels, sigma, samples)
    for place in range(3):
        part = slice(place, place + 1)
        alone = model(pixels[part], sigma[part], samples[part])
        torch.testing.assert_close(together[part], alone, rtol=1e-4, atol=1e-5)


def test_the_pipeline_passes_the_number_and_makes_one_pass(pipeline: L2PPipeline) -> None:
    calls: list[tuple[int, list[float]]] = []

    def note(_: Any, given: tuple[Any, ...]) -> None:
        calls.append((len(given[0]), [float(sample["guidance"]) for sample in given[2]]))

    hook = pipeline.transformer.register_forward_pre_hook(note)
    images = pipeline(["a ring", "a cross"], seeds=[1, 2], guidance_scale=2.5, **SMALL).images
    assert calls == [(2, [2.5, 2.5])] * 2 and not pipeline.do_classifier_free_guidance
    calls.clear()
    other = pipeline(["a ring", "a cross"], seeds=[1, 2], guidance_scale=4, **SMALL).images
    assert calls == [(2, [4.0, 4.0])] * 2
    assert (images - other).abs().amax() > 1e-3
    calls.clear()
    off = pipeline("a ring", seeds=[1], guidance_scale=0.0, **SMALL).images
    assert calls == [(1, [1.0])] * 2
    hook.remove()
    assert torch.equal(off, pipeline("a ring", seeds=[1], guidance_scale=1, **SMALL).images)


def test_the_polish_has_no_guidance() -> None:
    pipeline = L2PPipeline.from_pretrained(PIXEL_MODEL)
    pipeline.set_progress_bar_config(disable=True)
    learned(pipeline.transformer)
    seen: list[float] = []

    def note(_: Any, given: tuple[Any, ...]) -> None:
        seen.append(float(given[2][0].get("guidance", 1.0)))

    pipeline.transformer.register_forward_pre_hook(note)
    pipeline("a red ring", guidance_scale=3.0, seeds=[0], **SMALL)
    passes = len(pipeline.transformer.polish)
    assert passes and seen == [3.0, 3.0, *[1.0] * passes]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"guidance_scale": 4.5}, "guidance_scale 4.5 is outside of 1 to 4, the scales that this model has"),
        ({"guidance_scale": 1000.0}, "guidance_scale 1000 is outside of 1 to 4"),
        ({"negative_prompt": "a blue cross"}, "negative_prompt was given, and this model takes its guidance"),
        ({"negative_prompt": ["a blue cross"]}, "leave negative_prompt out"),
        ({"guidance_rescale": 0.5}, "leave guidance_rescale out"),
        ({"distilled_guidance_scale": 2.0}, "leave distilled_guidance_scale out"),
    ],
)
def test_what_it_has_not_learned_is_refused_in_one_line(
    pipeline: L2PPipeline, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ArchError, match=complaint) as raised:
        pipeline("a ring", **(SMALL | options))
    assert "\n" not in str(raised.value)


def test_an_empty_negative_prompt_is_none(pipeline: L2PPipeline) -> None:
    assert torch.equal(
        pipeline("a ring", negative_prompt=[""], seeds=[3], **SMALL).images,
        pipeline("a ring", seeds=[3], **SMALL).images,
    )


def test_threads_that_share_the_model_keep_their_numbers(pipeline: L2PPipeline) -> None:
    model, found = pipeline.transformer, dict[float, list[Tensor]]()
    wanted = {scale: model(*inputs(model, scale)).detach() for scale in (1.0, 2.0, 4.0)}

    def paint(scale: float) -> None:
        with torch.no_grad():
            found[scale] = [model(*inputs(model, scale)) for _ in range(10)]

    threads = [threading.Thread(target=paint, args=(scale,)) for scale in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, wanted[scale]) for scale, many in found.items() for each in many)
    assert len(found) == 3


@pytest.mark.parametrize("given", [[4, 1], [1], [0.5, 3], [1, float("nan")], "1 4", [1, float("inf")]])
def test_a_range_that_is_none_is_refused(given: Any, student: Path, tmp_path: Path) -> None:
    config = json.loads((student / "transformer" / "config.json").read_text())
    with pytest.raises(ArchError, match="it must be two numbers, the lowest scale of guidance"):
        L2PTransformer.from_config(config | {"guidance_range": given})


@pytest.mark.parametrize("given", [[4, 1], [1], {"low": 1}, "1 4", 3])
def test_a_damaged_range_in_a_directory_is_found_before_loading(
    given: Any, student: Path, tmp_path: Path
) -> None:
    import shutil

    model = shutil.copytree(student, tmp_path / "model")
    path = model / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"guidance_range": given}))
    with pytest.raises(ArchError, match="is damaged: guidance_range is"):
        find_pixel_model(model)


def test_it_is_taken_once(student: Path) -> None:
    model = L2PTransformer.from_pretrained(student / "transformer")
    with pytest.raises(ArchError, match="takes its guidance as a number already"):
        model.take_guidance(1, 5)


def test_layouts_without_a_place_for_it_refuse_it_in_one_line(student: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    for export in (
        lambda: export_public(student, tmp_path / "out.safetensors"),
        lambda: export_public(student, tmp_path / "out.safetensors", comfyui=True),
        lambda: export_gguf(student, tmp_path / "out.gguf"),
    ):
        with pytest.raises(ArchError, match="for which the public layouts have no place"):
            export()
    with pytest.raises(ArchError, match="enlarge the model that it was distilled from"):
        upscale(student, tmp_path / "larger", patch_size=32)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_8_bits_and_deltas_keep_it(student: Path, tmp_path: Path) -> None:
    model = L2PTransformer.from_pretrained(student / "transformer").eval()
    wanted = model(*inputs(model, 3.5))
    quantise(student, tmp_path / "small")
    small: Any = L2PTransformer.from_pretrained(tmp_path / "small" / "transformer").eval().float()
    assert (small(*inputs(model, 3.5)) - wanted).norm() < 0.1 * wanted.norm()
    changed = {"guidance_embedder.out.bias": torch.ones_like(model.guidance_embedder.out.bias)}
    save_delta(changed, student, tmp_path / "delta.safetensors")
    merge_delta(student, tmp_path / "delta.safetensors", tmp_path / "merged")
    merged = L2PTransformer.from_pretrained(tmp_path / "merged" / "transformer").eval()
    model.guidance_embedder.out.bias.fill_(1.0)
    assert torch.equal(merged(*inputs(model, 3.5)), model(*inputs(model, 3.5)))

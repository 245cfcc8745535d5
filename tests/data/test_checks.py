"""Options of the synthesis: sizes by bucket, a safety classifier, OCR of rendered text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from l2p_data import CheckSettings, DataError, SynthesisConfig, prompt_records, read_corpus, synthesize
from l2p_data.corpus.images import decode_image
from l2p_data.synthesis.buckets import aspect_buckets, parse_size
from l2p_data.synthesis.checks import RapidReader, SafetyCheck, TextCheck, text_match
from l2p_data.synthesis.synthesize import plan_shards
from l2p_data.synthesis.worker import Pixels, WorkerSettings, batches, make_shard
from PIL import Image, ImageDraw, ImageFont


def test_buckets_keep_the_area_and_every_batch_has_one_size(tmp_path: Path) -> None:
    sizes = aspect_buckets(1024)
    assert sizes[:3] == [(1024, 1024), (1152, 896), (896, 1152)] and len(sizes) == 7
    assert all(abs(width * height / 1024**2 - 1) < 0.05 for width, height in sizes)
    assert parse_size("1216x832") == (1216, 832)
    for wrong in ("1216", "0x4", "axb", "1x2x3"):
        with pytest.raises(DataError, match="WIDTHxHEIGHT"):
            parse_size(wrong)
    config = SynthesisConfig(model="m", output=tmp_path, buckets=sizes, rows_per_shard=16, seeds_per_prompt=2)
    prompts = prompt_records([f"prompt {index}" for index in range(100)])
    shards = plan_shards(prompts, config)
    rows = [row for shard in shards for row in shard]
    assert len({row["id"] for row in rows}) == 200
    assert {(row["width"], row["height"]) for row in rows} == set(sizes)
    cut = [batch for shard in shards for batch in batches(shard, 8)]
    assert all(len({(row["width"], row["height"]) for row in batch}) == 1 for batch in cut)
    assert sum(map(len, cut)) == 200 and len(cut) <= 200 / 8 + 2 * len(sizes)
    fewer = plan_shards(prompts.head(50), config)  # a size belongs to its image, whatever else is made
    assert all(row in rows for shard in fewer for row in shard)


def test_buckets_reach_the_pipeline_and_the_corpus(untrained_source: Path, tmp_path: Path) -> None:
    config = SynthesisConfig(
        model=untrained_source,
        output=tmp_path / "corpus",
        buckets=[(64, 64), (96, 32)],
        seeds_per_prompt=3,
        workers=0,
        pipeline_kwargs={"num_inference_steps": 1, "guidance_scale": 0.0, "max_sequence_length": 32},
    )
    synthesize(prompt_records(["a red circle", "a blue square"]), config)
    frame = read_corpus(tmp_path / "corpus")
    assert {(row["width"], row["height"]) for row in frame.iter_rows(named=True)} == {(64, 64), (96, 32)}
    for row in frame.iter_rows(named=True):
        assert decode_image(row["image"]).size == (row["width"], row["height"])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT that calls bright images unsafe: its head is set by hand from its own features."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label={0: "normal", 1: "NSFW"},
        label2id={"normal": 0, "NSFW": 1},
    )
    model = ViTForImageClassification(config).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    out = tmp_path_factory.mktemp("classifier")
    with torch.no_grad():
        images = [Image.new("RGB", (32, 32), (level,) * 3) for level in (0, 255)]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        dark, bright = model.vit(pixels).last_hidden_state[:, 0]
        direction = (bright - dark) / (bright - dark).square().sum() * 20
        model.classifier.weight.copy_(torch.stack([-direction, direction]))
        middle = (bright + dark) / 2 @ direction
        model.classifier.bias.copy_(torch.stack([middle, -middle]))
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def flat_images(prompts: Sequence[str], seeds: Sequence[int], size: tuple[int, int]) -> list[Pixels]:
    """Noise around the brightness that the prompt asks for."""
    return [
        np.clip(
            (0.9 if "bright" in text else 0.1) + np.random.default_rng(0).normal(0, 0.02, (16, 16, 3)), 0, 1
        )
        for text in prompts
    ]


def shard(texts: Sequence[str], checks: CheckSettings, folder: Path) -> dict[str, object]:
    settings = WorkerSettings(
        model="",
        corpus=str(folder),
        source_model="m",
        batch_size=2,
        threads=1,
        dtype="auto",
        image_format="png",
        max_attempts=2,
        checks=checks,
    )
    config = SynthesisConfig(model="m", output=folder, seeds_per_prompt=1, width=16, height=16)
    return make_shard(0, plan_shards(prompt_records(texts), config)[0], flat_images, settings, checks.load())


def test_unsafe_images_are_listed_and_not_stored(classifier: Path, tmp_path: Path) -> None:
    entry = shard(["dark a", "bright b", "dark c"], CheckSettings(safety_model=str(classifier)), tmp_path)
    assert entry["file"]["rows"] == 2  # type: ignore[index]
    (failure,) = entry["failures"]  # type: ignore[misc]
    assert failure["error"].startswith("unsafe: NSFW ") and failure["attempts"] == 1
    with pytest.raises(DataError, match=r"knows none of the unsafe labels gore; its labels are normal, NSFW"):
        CheckSettings(safety_model=str(classifier), unsafe_labels=("gore",)).load()
    with pytest.raises(DataError, match="does not exist"):
        CheckSettings(safety_model=str(tmp_path / "none")).load()


def test_a_check_that_fails_does_not_let_images_through(tmp_path: Path) -> None:
    class Broken:
        def classify(self, images: Sequence[Image.Image]) -> list[Mapping[str, float]]:
            raise RuntimeError("no memory")

    settings = WorkerSettings(
        model="",
        corpus=str(tmp_path),
        source_model="m",
        batch_size=2,
        threads=1,
        dtype="auto",
        image_format="png",
        max_attempts=2,
    )
    config = SynthesisConfig(model="m", output=tmp_path, seeds_per_prompt=1, width=16, height=16)
    rows = plan_shards(prompt_records(["dark"]), config)[0]
    entry = make_shard(0, rows, flat_images, settings, [SafetyCheck(Broken(), ["nsfw"], 0.5)])
    assert entry["failures"][0]["error"] == "unchecked: RuntimeError: no memory"


def test_text_match_counts_the_letters_that_were_read() -> None:
    assert text_match(["OPEN DAILY"], "open daily") == 1.0
    assert text_match(["OPEN"], "0PEN") == 0.75
    assert text_match(["开放"], "今日 开放") == 1.0
    assert text_match(["OPEN"], "") == 0.0
    assert text_match(["!"], "") == 1.0  # nothing that could be read


def test_ocr_tells_rendered_text_from_its_absence() -> None:
    picture = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(picture).text((20, 20), "OPEN DAILY", fill="black", font=ImageFont.load_default(44))
    check = TextCheck(RapidReader(), 0.8)
    blank = Image.new("RGB", (320, 96), "white")
    prompts = ['A sign reads "OPEN DAILY".', 'A sign reads "OPEN DAILY".', "A white wall."]
    found = check.faults([picture, blank, blank], prompts)
    assert found[0] is None and found[2] is None
    assert found[1] == "text: wanted 'OPEN DAILY', read '' (0.00 of it)"

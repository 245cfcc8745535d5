"""The miniature's source model: a Z-Image in all but size, and its training."""

import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from l2p_mini.architecture import build_pipeline
from l2p_mini.detector import ExactDetector
from l2p_mini.paths import EVALUATION_METADATA, SOURCE_MODEL
from l2p_mini.training.ldm import BatchedZImage, build_model, cache_scenes, sample_sigma, tokenize
from l2p_mini.training.run import Ema
from l2p_mini.training.vae import to_pixels, training_scene
from l2p_mini.world import render
from safetensors.torch import load_file


def test_the_directory_is_laid_out_as_z_image_turbo() -> None:
    index = json.loads((SOURCE_MODEL / "model_index.json").read_text())
    assert index["_class_name"] == "ZImagePipeline"
    assert index["transformer"] == ["diffusers", "ZImageTransformer2DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["text_encoder"] == ["transformers", "Qwen3Model"]
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    files = [path for path in SOURCE_MODEL.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    assert sum(path.stat().st_size for path in files) < 15e6


def test_diffusers_loads_it_and_it_draws_what_the_prompt_says() -> None:
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(SOURCE_MODEL, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rows = [json.loads(line) for line in EVALUATION_METADATA.read_text().splitlines()]
    rows = [row for row in rows if row["tag"] in ("colors", "color_attr")][::4]
    images = pipeline(
        [row["prompt"] for row in rows],
        height=64,
        width=64,
        num_inference_steps=12,
        guidance_scale=2.0,
        max_sequence_length=32,
        generator=[torch.Generator().manual_seed(index) for index in range(len(rows))],
    ).images
    detector, right = ExactDetector(), 0
    for row, image in zip(rows, images, strict=True):
        found = {(d.label, d.color) for d in detector.detect(image) if d.confidence > 0.3}
        right += all((entry["class"], entry["color"]) in found for entry in row["include"])
    # The model card's scores are measured on ten times as many images; this says that the shipped files are
    # that model.
    assert right >= 0.7 * len(rows)


@torch.no_grad()
def test_the_batched_training_forward_equals_diffusers_own() -> None:
    pipeline = build_pipeline(seed=1)
    prompts = ["a red circle", "four white rings on a black background", ""]
    tokens, mask = tokenize(
        pipeline.tokenizer, prompts
    )  # first: encode_prompt writes into the list it is given
    latents, sigma = torch.randn(3, 16, 8, 8), torch.tensor([0.1, 0.5, 1.0])
    captions, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=64)
    raw = pipeline.transformer(list(latents.unsqueeze(2)), 1 - sigma, captions, return_dict=False)[0]
    batched = BatchedZImage(pipeline.transformer, pipeline.text_encoder)
    velocity = batched(latents, sigma, tokens, mask)
    torch.testing.assert_close(velocity, -torch.stack(raw).squeeze(2))


def test_unknown_words_reach_the_encoder_as_unknown() -> None:
    tokenizer = build_pipeline().tokenizer
    ids, mask = tokenize(tokenizer, ["a Red zebra"])
    tokens = tokenizer.convert_ids_to_tokens(ids[0])[: int(mask.sum())]
    assert tokens == [
        "<|im_start|>",
        "user",
        "a",
        "red",
        "<|unk|>",
        "<|im_end|>",
        "<|im_start|>",
        "assistant",
    ]


def test_sigmas_are_stratified_over_the_shifted_schedule() -> None:
    sigma = sample_sigma(1000, 3.0, torch.Generator().manual_seed(0)).double()
    unshifted = sigma / (3 - 2 * sigma)
    assert (unshifted - (torch.arange(1000) + 0.5) / 1000).abs().max() < 1.5e-3


def test_ema_follows_and_swaps_back() -> None:
    model = torch.nn.Linear(2, 2)
    ema = Ema(model, 0.5)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    ema.update(model, step=1000)
    ema.swap(model)
    torch.testing.assert_close(model.weight, first + 0.5)
    ema.swap(model)
    torch.testing.assert_close(model.weight, first + 1)


def test_a_vae_training_that_stops_and_resumes_equals_an_undisturbed_one(tmp_path: Path) -> None:
    steps = 4

    def train(name: str, until: int) -> Path:
        command = [
            sys.executable,
            "-m",
            "l2p_mini.training.vae",
            "--output",
            str(tmp_path / name),
            "--batch",
            "2",
        ]
        command += ["--steps", str(steps), "--stop-after", str(until)]
        subprocess.run(command, check=True, capture_output=True)
        return tmp_path / name / "vae" / "diffusion_pytorch_model.safetensors"

    train("stopped", 2)
    assert train("stopped", steps).read_bytes() == train("whole", steps).read_bytes()


@torch.no_grad()
def test_a_new_decoder_leaves_the_latents_as_they_are(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "l2p_mini.training.vae", "--initial", str(SOURCE_MODEL / "vae")]
    command += ["--freeze-encoder", "--latent-noise", "0.1", "--edge-weight", "1", "--steps", "2"]
    command += ["--batch", "2", "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    before, after = (
        AutoencoderKL.from_pretrained(SOURCE_MODEL / "vae"),
        AutoencoderKL.from_pretrained(tmp_path / "vae"),
    )
    pixels = to_pixels([render(training_scene(random.Random(0))[1], 64)])
    for vae in (before, after):
        vae.float().eval()
    torch.testing.assert_close(
        after.encode(pixels).latent_dist.mean, before.encode(pixels).latent_dist.mean, rtol=0, atol=0
    )
    for key in ("shift_factor", "scaling_factor"):
        assert after.config[key] == before.config[key]
    latents = before.encode(pixels).latent_dist.mean
    assert not torch.equal(after.decode(latents).sample, before.decode(latents).sample)


def test_a_focus_raises_the_share_of_a_task(tmp_path: Path) -> None:
    vae, tokenizer = build_pipeline().vae, build_pipeline().tokenizer
    cache = cache_scenes(vae, tokenizer, tmp_path / "scenes.safetensors", 100, 0, {"counting": 1.0})
    counts = {tokenizer.convert_tokens_to_ids(word) for word in ("two", "three", "four")}
    assert all(counts & set(row.tolist()) for row in cache["tokens"])


def test_a_source_that_is_continued_starts_with_its_own_weights() -> None:
    model = build_model(0, SOURCE_MODEL)
    shipped = load_file(SOURCE_MODEL / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, parameter in model.transformer.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, shipped[name].float()), name

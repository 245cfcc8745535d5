"""The aligned recipe: its maps are what they claim, its start is measured, its mistakes are one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import (
    ArchError,
    L2PPipeline,
    L2PTransformer,
    convert,
    export_public,
    merge_delta,
    quantise,
    save_delta,
)
from l2p_arch.alignment import DETAIL_SIDES, Alignment, local_mean, normalised
from l2p_arch.cli import main
from l2p_arch.surgery.alignment import fit_filters, fit_subspace
from safetensors.torch import load_file, save_file
from torch import Tensor

HEAD = (8, 8, 16, 16)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def aligned(
    flat_halves: Callable[..., Tensor], untrained_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("aligned") / "out"
    convert(untrained_source, out, recipe="aligned", head_channels=HEAD, calibration_images=flat_halves())
    return out


def eq_5(model: Any, images: Tensor, level: float) -> float:
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(images.shape, generator=generator)
    sigma = torch.full((len(images),), level)
    with torch.no_grad():
        velocity = model(
            (1 - level) * images + level * noise, sigma, [{"caption": torch.zeros(3, 128)}] * len(images)
        )
    return float((velocity - (noise - images)).square().mean())


def test_every_tensor_of_the_source_is_inherited_byte_for_byte(aligned: Path, untrained_source: Path) -> None:
    report = json.loads((aligned / "surgery_report.json").read_text())
    source, result = load_file(untrained_source / WEIGHTS), load_file(aligned / WEIGHTS)
    renamed = {
        f"trunk.{name}".replace("all_x_embedder.2-1", "all_x_embedder.1-1").replace(
            "all_final_layer.2-1", "all_final_layer.1-1"
        ): value
        for name, value in source.items()
    }
    assert {record["name"] for record in report["inherited"]} == set(renamed)
    assert not report["dropped"]
    assert report["recipe"] == "aligned"
    for name, value in renamed.items():
        assert torch.equal(result[name], value)
    assert {"pixels_from_latents", "latents_from_subspace", "scale"} <= report["measures"].keys()


def test_the_maps_stay_float32_in_a_model_of_bfloat16(aligned: Path) -> None:
    model = L2PTransformer.from_pretrained(aligned / "transformer", dtype=torch.bfloat16)
    for loaded in (model, model.to(torch.bfloat16), model.half()):
        maps = loaded.aligner.state_dict().values()
        assert {value.dtype for value in maps} == {torch.float32}
        assert {p.dtype for p in loaded.detailer_head.parameters()} <= {torch.bfloat16, torch.float16}


def test_the_start_has_the_loss_that_the_surgery_measured(
    flat_halves: Callable[..., Tensor], aligned: Path
) -> None:
    measures = json.loads((aligned / "surgery_report.json").read_text())["measures"]
    model = L2PTransformer.from_pretrained(aligned / "transformer").eval()
    level = float(model.aligner.filter_sigmas[8])
    told = measures[f"eq_5_at_sigma_{level:.2f}"]
    assert eq_5(model, flat_halves(), level) == pytest.approx(told, rel=0.25)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_the_start_does_not_depend_on_the_size_of_the_trunks_features(
    flat_halves: Callable[..., Tensor], aligned: Path, size: float
) -> None:
    """Also with a head that adds something: it reads the features at one size, whatever the stream has."""
    model: Any = L2PTransformer.from_pretrained(aligned / "transformer").eval()
    torch.nn.init.normal_(model.detailer_head.out_conv.weight, std=0.1)
    seen: list[Tensor] = []
    handle = model.detailer_head.register_forward_hook(lambda module, args, output: seen.append(args[1]))
    before = eq_5(model, flat_halves(), 0.5)
    last = model.trunk.layers[-1]
    with torch.no_grad():
        last.feed_forward.w2.weight.mul_(size)
    after = eq_5(model, flat_halves(), 0.5)
    handle.remove()
    assert all(float(features.square().mean()) == pytest.approx(1, rel=0.01) for features in seen)
    assert after < 3 * before + 1


def test_features_of_any_size_are_read_alike() -> None:
    features = torch.randn(2, 24, 3, 5)
    for size in (1e-2, 1e2, 1e4):
        torch.testing.assert_close(normalised(size * features), normalised(features), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("side", [*DETAIL_SIDES, 1, 5, 11])
@pytest.mark.parametrize("size", [(64, 64), (5, 40), (33, 3)])
def test_local_means_are_those_of_average_pooling_within_the_image(side: int, size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(side)).requires_grad_()
    wanted = torch.nn.functional.avg_pool2d(image, side, stride=1, padding=side // 2, count_include_pad=False)
    found = local_mean(image, side)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    pull = torch.randn_like(wanted)
    gradients = (torch.autograd.grad(one, image, pull)[0] for one in (found, wanted))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_local_means_of_a_large_image_keep_the_digits_of_small_detail() -> None:
    image = 1 + 1e-4 * torch.randn(1, 1, 8, 4096, generator=torch.Generator().manual_seed(0)).double()
    exact = local_mean(image, 15) - image
    assert ((local_mean(image.float(), 15) - image.float()) - exact).abs().max() < 5e-7


def test_white_pixel_noise_becomes_white_latent_noise_at_the_sources_noise_level() -> None:
    alignment = Alignment(4, 12)
    images = torch.rand(60, 3, 16, 16) * 2 - 1
    fit_subspace(alignment, images, torch.randn(60, 12, 4, 4))
    identity = alignment.subspace.T @ alignment.subspace
    torch.testing.assert_close(identity, torch.eye(12), rtol=0, atol=1e-5)
    _, source_sigma = alignment.to_latents(torch.randn(2, 3, 16, 16), torch.tensor([0.3, 1.0]))
    s = float(alignment.scale)
    assert source_sigma.tolist() == pytest.approx([0.3 / (0.7 * s + 0.3), 1.0])


def test_filters_recover_a_velocity_that_is_linear_in_what_they_read() -> None:
    alignment = Alignment(4, 12, filter_sigmas=2, decoded_kernel=3)
    images = torch.rand(16, 3, 16, 16) * 2 - 1
    fit_subspace(alignment, images, torch.randn(16, 12, 4, 4))
    left = fit_filters(
        alignment, images, lambda x_t, sigma, first: torch.zeros(len(x_t), 12, 4, 4), sigmas=(0.2, 0.9)
    )
    # White images of variance 1/3: v = (x_t - x_0) / sigma is best guessed from the one pixel of x_t.
    for level, error in left.items():
        kept = (1 - level) ** 2 / 3 + level**2
        assert error == pytest.approx(1 + 1 / 3 - (level - (1 - level) / 3) ** 2 / kept, rel=0.05)


def test_a_model_of_the_recipe_samples_at_the_shift_that_its_scale_says(aligned: Path) -> None:
    pipeline = L2PPipeline.from_pretrained(aligned)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[float] = []
    pipeline(
        "a red circle",
        height=32,
        width=48,
        num_inference_steps=4,
        seeds=[0],
        on_step=lambda step, sigma, x_t: seen.append(sigma),
    )
    shift = 3.0 * pipeline.transformer.noise_scale
    wanted = [shift * u / (1 + (shift - 1) * u) for u in (1, 0.75, 0.5, 0.25)]
    assert seen == pytest.approx(wanted, rel=1e-3)


def test_a_finished_image_is_denoised_once_more_at_the_sigma_that_polish_names(aligned: Path) -> None:
    pipeline = L2PPipeline.from_pretrained(aligned)
    pipeline.set_progress_bar_config(disable=True)
    call: Any = {"height": 32, "width": 32, "num_inference_steps": 2, "seeds": [0], "guidance_scale": 1.0}
    given = [{"caption": torch.zeros(3, 128)}]
    plain, none, default, once, twice = (
        pipeline(prompt_conditioning=given, output_type="latent", polish=polish, **call).images
        for polish in (0.0, (), None, 0.2, (0.2, 0.02))
    )
    assert torch.equal(default, twice) and torch.equal(plain, none)
    for before, sigma, after in ((plain, 0.2, once), (once, 0.02, twice)):
        x_t = (1 - sigma) * before
        with torch.no_grad():
            velocity = pipeline.transformer(x_t, torch.tensor([sigma]), given)
        torch.testing.assert_close(after, x_t - sigma * velocity)


def test_a_model_of_before_is_polished_once(aligned: Path, tmp_path: Path) -> None:
    shutil.copytree(aligned, tmp_path / "old")
    path = tmp_path / "old" / "transformer" / "config.json"
    config = json.loads(path.read_text())
    for polish, passes in ((0.2, (0.2,)), (0.0, ()), (None, ())):
        config["alignment"] |= {"version": 3, "polish": polish}
        if polish is None:
            del config["alignment"]["polish"]
        path.write_text(json.dumps(config))
        assert L2PTransformer.from_pretrained(tmp_path / "old" / "transformer").polish == passes


@pytest.mark.parametrize("polish", [1.0, 1.5, -0.1, float("nan"), float("inf")])
def test_a_polish_that_is_no_sigma_is_refused_before_anything_is_painted(aligned: Path, polish: Any) -> None:
    pipeline = L2PPipeline.from_pretrained(aligned)
    steps: list[int] = []
    with pytest.raises(ArchError, match=f"polish {polish} is not a sigma"):
        pipeline("two", height=32, width=32, polish=polish, on_step=lambda step, *_: steps.append(step))
    assert not steps


def test_a_polish_of_a_given_image_is_refused(aligned: Path) -> None:
    pipeline = L2PPipeline.from_pretrained(aligned)
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ArchError, match=r"polish 0\.2 takes the grain off what was painted from noise"):
        pipeline("two", image=image, height=32, width=32, polish=0.2)
    assert (
        len(pipeline("two", image=image, height=32, width=32, polish=0.0, num_inference_steps=2).images) == 1
    )


def test_a_tiled_head_gives_the_same_velocity(aligned: Path) -> None:
    model: Any = L2PTransformer.from_pretrained(aligned / "transformer").eval()
    torch.nn.init.normal_(model.detailer_head.out_conv.weight, std=0.1)
    pixels, caption = torch.randn(1, 3, 128, 64), [{"caption": torch.zeros(3, 128)}]
    with torch.no_grad():
        whole = model(pixels, torch.tensor([0.4]), caption)
        model.detailer_head.enable_tiling(32)
        torch.testing.assert_close(model(pixels, torch.tensor([0.4]), caption), whole, rtol=1e-4, atol=1e-4)


def test_a_delta_of_an_aligned_model_merges_with_its_base(aligned: Path, tmp_path: Path) -> None:
    name = "trunk.all_final_layer.1-1.linear.weight"
    trained = {name: torch.ones_like(load_file(aligned / WEIGHTS)[name])}
    save_delta(trained, aligned, tmp_path / "delta.safetensors")
    merge_delta(aligned, tmp_path / "delta.safetensors", tmp_path / "merged")
    assert torch.equal(load_file(tmp_path / "merged" / WEIGHTS)[name], trained[name])


def test_mixing_the_recipes_is_one_line(aligned: Path, untrained_source: Path, tmp_path: Path) -> None:
    convert(untrained_source, tmp_path / "paper", head_channels=HEAD)
    name = "detailer_head.out_conv.weight"
    trained = {name: torch.ones_like(load_file(tmp_path / "paper" / WEIGHTS)[name])}
    save_delta(trained, tmp_path / "paper", tmp_path / "delta.safetensors")
    with pytest.raises(ArchError, match=r"recipe"):
        merge_delta(aligned, tmp_path / "delta.safetensors", tmp_path / "out")
    with pytest.raises(ArchError, match=r"aligned.*paper"):
        export_public(aligned, tmp_path / "model.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_vae_or_bad_images_is_one_line(
    flat_halves: Callable[..., Tensor],
    untrained_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(match: str, source: Path = untrained_source, **options: Any) -> None:
        settings: dict[str, Any] = {
            "recipe": "aligned",
            "head_channels": HEAD,
            "calibration_images": flat_halves(),
        }
        with pytest.raises(ArchError, match=match):
            convert(source, tmp_path / "out", **settings | options)
        assert not (tmp_path / "out").exists()

    refused("needs calibration_images", calibration_images=None)
    refused("of one colour", calibration_images=torch.full((40, 3, 64, 64), 0.3))
    refused("too few", calibration_images=flat_halves(3))
    refused("needs a Detailer Head", head_channels=())
    refused("unknown decoder 'pca'", decoder="pca")
    refused("belongs to the paper's recipe", initialisation="fitted+kaiming+gated")
    refused("unknown recipe 'alined'", recipe="alined")
    refused('belongs to recipe = "aligned"', recipe="paper", decoder="filters")
    bare = Path(shutil.copytree(untrained_source, tmp_path / "bare"))
    broken = Path(shutil.copytree(untrained_source, tmp_path / "broken"))
    weights = broken / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: value * float("nan") for name, value in load_file(weights).items()}, weights)
    refused("NaN or infinity", broken)
    shutil.rmtree(bare / "vae")
    refused("has no vae", bare)
    assert main(["convert", str(bare), str(tmp_path / "out"), "--recipe", "aligned"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_offloaded_and_8_bit_models_paint_what_the_whole_one_paints(aligned: Path, tmp_path: Path) -> None:
    call: Any = {"height": 32, "width": 32, "num_inference_steps": 2, "seeds": [0], "output_type": "pt"}
    call["prompt"] = "a red circle"

    def painted(pipeline: L2PPipeline) -> Tensor:
        pipeline.set_progress_bar_config(disable=True)
        images: Tensor = pipeline(**call).images
        return images

    whole = painted(L2PPipeline.from_pretrained(aligned))
    offloaded = L2PPipeline.from_pretrained(aligned)
    offloaded.enable_model_cpu_offload(device="cpu")  # the hooks of a GPU, with the CPU in its place
    torch.testing.assert_close(painted(offloaded), whole)
    quantise(aligned, tmp_path / "small")
    eight = L2PPipeline.from_pretrained(tmp_path / "small")
    assert {value.dtype for value in eight.transformer.aligner.state_dict().values()} == {torch.float32}
    assert float((painted(eight) - whole).abs().mean()) < 0.02

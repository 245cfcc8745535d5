"""An aligned model with a larger patch paints, block by block in the mean, what the smaller one paints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, L2PPipeline, L2PTransformer, convert, upscale
from l2p_arch.alignment import Alignment
from l2p_arch.enlargement import block_means, enlarged, reduced, repeated
from l2p_arch.surgery.alignment import fit_subspace
from safetensors.torch import load_file, save_file
from torch import Tensor

HEAD = (8, 8, 16, 16)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CAPTION = [{"caption": torch.randn(3, 128, generator=torch.Generator().manual_seed(5))}]


@pytest.fixture(scope="module")
def small(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An aligned model whose head adds something, as a trained one does."""
    out = tmp_path_factory.mktemp("small") / "small"
    colours = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    images = torch.nn.functional.interpolate(colours, size=(64, 64), mode="bilinear")
    convert(untrained_source, out, recipe="aligned", head_channels=HEAD, calibration_images=images)
    tensors = load_file(out / WEIGHTS)
    generator = torch.Generator().manual_seed(4)
    tensors["detailer_head.out_conv.weight"].normal_(std=0.1, generator=generator)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    return out


def loaded(model: Path) -> Any:
    return L2PTransformer.from_pretrained(model / "transformer").eval()


def image_of(model: Any, x_t: Tensor, sigma: Tensor) -> Tensor:
    with torch.no_grad():
        return x_t - sigma.view(-1, 1, 1, 1) * model(x_t, sigma, CAPTION * len(x_t))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_image_of_the_larger_patch_has_the_smaller_ones_as_its_block_means(
    small: Path, tmp_path: Path, factor: int
) -> None:
    """Whatever the image: noise, an enlarged picture, or detail that the small model cannot see; and whatever
    the second head has learned."""
    upscale(small, tmp_path / "large", patch_size=16 * factor)
    before, after = loaded(small), loaded(tmp_path / "large")
    torch.nn.init.normal_(after.fine_head.out_conv.weight, std=0.1)
    picture = torch.rand(1, 3, 32, 48) * 2 - 1
    nearest = repeated(picture, factor)
    detailed = nearest + 0.3 * torch.randn_like(nearest)
    for x_0 in (torch.zeros_like(nearest), nearest, detailed):
        for level in (0.02, 0.3, 0.8, 1.0):
            sigma = torch.tensor([level])
            x_t = (1 - sigma) * x_0 + sigma * torch.randn_like(x_0)
            seen = reduced(x_t, sigma, factor)
            expected = image_of(before, seen.pixels, seen.sigma)
            image = image_of(after, x_t, sigma)
            torch.testing.assert_close(block_means(image, factor), expected, rtol=1e-3, atol=1e-4)


def test_what_the_small_model_is_given_is_its_own_x_t() -> None:
    x_0, noise = torch.rand(2, 3, 16, 24), torch.randn(2, 3, 16, 24)
    sigma = torch.tensor([0.35, 0.9])
    seen = reduced((1 - sigma.view(2, 1, 1, 1)) * x_0 + sigma.view(2, 1, 1, 1) * noise, sigma, 4)
    level = seen.sigma.view(2, 1, 1, 1)
    expected = (1 - level) * block_means(x_0, 4) + level * 4 * block_means(noise, 4)
    torch.testing.assert_close(seen.pixels, expected)
    odds = sigma / (1 - sigma)
    torch.testing.assert_close(seen.sigma / (1 - seen.sigma), odds / 4)


def test_the_maps_of_the_large_patch_are_those_of_the_small_one_on_block_means() -> None:
    """Q' = N Q / f, s' = f s, N x_mean: the same tokens, and white noise stays white."""
    alignment, larger = Alignment(4, 12), Alignment(8, 12)
    fit_subspace(alignment, torch.rand(60, 3, 16, 16) * 2 - 1, torch.randn(60, 12, 4, 4))
    columns = alignment.subspace.T.reshape(12, 3, 4, 4)
    larger.subspace.copy_(repeated(columns, 2).reshape(12, -1).T / 2)
    larger.scale.copy_(2 * alignment.scale)
    larger.latent_mean.copy_(alignment.latent_mean)
    larger.pixel_mean.copy_(repeated(alignment.pixel_mean.view(1, 3, 4, 4), 2).flatten())
    torch.testing.assert_close(larger.subspace.T @ larger.subspace, torch.eye(12), rtol=0, atol=1e-5)
    x_t, sigma = torch.randn(2, 3, 16, 24), torch.tensor([0.2, 0.8])
    seen = reduced(x_t, sigma, 2)
    for got, expected in zip(
        alignment.to_latents(seen.pixels, seen.sigma), larger.to_latents(x_t, sigma), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_closed_form_is_the_posterior_mean_of_detail_of_a_known_size() -> None:
    """Detail of size c around the smooth enlargement: half of it is believed where the noise is as strong."""
    detail, sigma = 0.5, torch.tensor([1 / 3])
    x_t = repeated(torch.zeros(1, 3, 4, 4), 2) + torch.tensor([1.0, -1.0]).repeat(4)
    small = reduced(x_t, sigma, 2)
    velocity_of_zero = small.pixels / small.sigma  # the small model sees a gray image
    _, velocity, error = enlarged(x_t, sigma, small, velocity_of_zero, torch.zeros(1), 2, detail)
    x_0 = x_t - sigma * velocity
    gain = (2 / 3) * detail**2 / ((2 / 3) ** 2 * detail**2 + (1 / 3) ** 2)
    torch.testing.assert_close(x_0, gain * x_t)
    assert float(error) == pytest.approx(detail / ((2 / 3 * detail) ** 2 + 1 / 9) ** 0.5)


def test_a_whole_sampling_has_the_small_models_picture_as_its_block_means(
    small: Path, tmp_path: Path
) -> None:
    """With guidance, the shift that follows from the scale, and the polish: all by default."""
    upscale(small, tmp_path / "large", patch_size=32)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    pictures = []
    for model, latents in ((small, 2 * block_means(noise, 2)), (tmp_path / "large", noise)):
        pipeline = L2PPipeline.from_pretrained(model)
        pipeline.set_progress_bar_config(disable=True)
        call: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"}
        size = {"height": latents.shape[2], "width": latents.shape[3]}
        given = {"prompt_conditioning": CAPTION, "negative_conditioning": [{"caption": torch.zeros(2, 128)}]}
        pictures.append(pipeline(latents=latents, **given, **size, **call).images)
    torch.testing.assert_close(block_means(pictures[1], 2), pictures[0], rtol=1e-3, atol=2e-3)


def test_everything_of_the_small_model_is_inherited_and_the_second_head_adds_nothing_at_first(
    small: Path, tmp_path: Path
) -> None:
    report = upscale(small, tmp_path / "large", patch_size=64)
    old, new = load_file(small / WEIGHTS), load_file(tmp_path / "large" / WEIGHTS)
    assert all(torch.equal(new[name], value) for name, value in old.items())
    assert {record.name for record in report.new} == set(new) - set(old)
    assert all(record.name.startswith("fine_head.") for record in report.new)
    assert report.recipe == "aligned"
    assert report.initialisation == "upscale+kaiming+zero-output"
    large = loaded(tmp_path / "large")
    assert list(large.config.head_channels) == [8, 8, *HEAD]
    assert large.noise_scale == pytest.approx(4 * loaded(small).noise_scale)
    before = loaded(small).polish
    assert len(before) > 1 and all(0 < sigma < 1 for sigma in before)
    ratios = [sigma / (1 - sigma) for sigma in large.polish]
    assert ratios == pytest.approx([4 * sigma / (1 - sigma) for sigma in before])
    assert not large.fine_head.out_conv.weight.any()
    assert large.fine_head.enc1[0].weight.any()


def test_gradients_reach_both_heads_and_tiles_change_nothing(small: Path, tmp_path: Path) -> None:
    upscale(small, tmp_path / "large", patch_size=32)
    large = loaded(tmp_path / "large")
    torch.nn.init.normal_(large.fine_head.out_conv.weight, std=0.1)
    pixels, sigma = torch.randn(1, 3, 128, 64), torch.tensor([0.4])
    whole = large(pixels, sigma, CAPTION)
    whole.square().mean().backward()
    large.fine_head.out_conv.bias.grad = None  # a constant has no deviations: it trains nothing
    for head in (large.fine_head, large.detailer_head):
        named = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
        assert len(named) >= len(list(head.parameters())) - 1
        assert all(gradient.abs().sum() > 0 for gradient in named.values())
    large.enable_head_tiling(32)
    assert (large.fine_head.tile, large.detailer_head.tile) == (32, 16)
    with torch.no_grad():
        torch.testing.assert_close(large(pixels, sigma, CAPTION), whole, rtol=1e-4, atol=1e-4)


def test_heads_and_models_that_do_not_suit_are_one_line(small: Path, tmp_path: Path) -> None:
    def refused(match: str, model: Path = small, **options: Any) -> None:
        with pytest.raises(ArchError, match=match) as caught:
            upscale(model, tmp_path / "out", **{"patch_size": 32} | options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused(r"keeps its head \(8, 8, 16, 16\).*1 finer level before", head_channels=(4, 8, 8, 8, 16))
    refused(r"2 finer levels before", patch_size=64, head_channels=(8, *HEAD))
    refused("no larger multiple", patch_size=24)
    refused("head_bottleneck 32 is not the aligned model's own", head_bottleneck=32)
    refused("belongs to the paper's recipe", initialisation="detail")
    upscale(small, tmp_path / "large", patch_size=32)
    refused("has been enlarged already", tmp_path / "large", patch_size=64)

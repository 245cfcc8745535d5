"""The fitted embedder answers images as the source does, and noise with the source's own noise."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from einops import rearrange
from l2p_arch import ArchError, L2PTransformer, convert
from l2p_arch.detailer import DetailerHead
from l2p_arch.families import FAMILIES
from l2p_arch.surgery.calibration import fit_patches_to_latents, paired_tokens
from l2p_arch.surgery.source import open_source
from l2p_arch.surgery.starts import (
    STARTS_WITH_IMAGES,
    STARTS_WITHOUT_IMAGES,
    check_initialisation,
    new_tensors,
    resolve_initialisation,
)
from torch import Tensor


def smooth_images(count: int, side: int, seed: int = 0) -> Tensor:
    """Images with the falling spectrum of natural ones, (count, 3, side, side) in [-1, 1]."""
    coarse = torch.randn(count, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(-2, 2) / 2


def sample_tokens(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pixel patches of falling spectrum and latents that are a linear map of them and a little of their
    own."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.cat((torch.tensor([8.0, 4, 3, 2, 1, 1, 0.5]), torch.full((25,), 0.01)))
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(9)))[0]
    coordinates = torch.randn(count, 32, generator=generator) * spectrum
    mixing = (
        torch.randn(6, 32, generator=torch.Generator().manual_seed(10))
        / spectrum.clamp_min(1)
        * (spectrum > 0.1)
    )
    return coordinates @ basis + 0.3, coordinates @ mixing.T / 3 + 0.5


def test_the_map_explains_latents_that_are_linear_in_the_pixels() -> None:
    fit = fit_patches_to_latents([sample_tokens(4000)], match_noise=False)
    patches, latents = sample_tokens(500, seed=1)
    predicted = patches.double() @ fit.matrix.T + fit.offset
    assert fit.explained > 0.9
    assert (predicted - latents).square().mean() < 0.1 * latents.var()


def test_the_fit_does_not_depend_on_how_the_tokens_are_batched() -> None:
    patches, latents = sample_tokens(1000)
    whole = fit_patches_to_latents([(patches, latents)], match_noise=False)
    parts = fit_patches_to_latents(
        zip(patches.split(300), latents.split(300), strict=True), match_noise=False
    )
    torch.testing.assert_close(parts.matrix, whole.matrix)
    predicted = patches.double() @ whole.matrix.T + whole.offset
    residual = (latents - predicted).square().sum() / (latents - latents.mean(0)).square().sum()
    assert whole.explained == pytest.approx(1 - float(residual), abs=1e-6)


def test_unit_pixel_noise_becomes_unit_latent_noise() -> None:
    quiet = fit_patches_to_latents([sample_tokens(4000)], match_noise=False)
    fit = fit_patches_to_latents([sample_tokens(4000)], match_noise=True)
    torch.testing.assert_close(fit.matrix @ fit.matrix.T, torch.eye(6, dtype=torch.float64))
    assert fit.noise_gain == pytest.approx(1)
    assert quiet.noise_gain < 1
    assert fit.explained == pytest.approx(quiet.explained, abs=0.01)


def test_the_converted_embedder_gives_the_tokens_of_the_fit(untrained_source: Path, tmp_path: Path) -> None:
    images = smooth_images(24, 64)
    report = convert(
        untrained_source,
        tmp_path / "out",
        head_channels=(8, 8, 8, 8),
        initialisation="fitted-noise+zero-output",
        calibration_images=images,
    )
    assert 0 < report.measures["latent_variance_explained"] <= 1
    assert report.measures["noise_gain"] == pytest.approx(1)
    assert json.loads((tmp_path / "out/surgery_report.json").read_text())["measures"] == dict(report.measures)
    model = L2PTransformer.from_pretrained(tmp_path / "out/transformer")
    assert not model.detailer_head.out_conv.weight.any()

    source = open_source(untrained_source)
    layout = FAMILIES["z-image"].latent_embedder(source.transformer_config)
    pairs = list(paired_tokens(source, layout, images, 16))
    fit = fit_patches_to_latents(pairs, match_noise=True)
    patches = torch.cat([pair[0] for pair in pairs])
    weight = source.tensors["all_x_embedder.2-1.weight"].read()
    bias = source.tensors["all_x_embedder.2-1.bias"].read()
    imitated = (patches.double() @ fit.matrix.T + fit.offset).float()
    tokens = model.trunk.all_x_embedder["1-1"](patches)
    torch.testing.assert_close(tokens, imitated @ weight.T + bias, rtol=1e-3, atol=1e-4)


def test_the_kaiming_start_keeps_the_signals_size_through_the_head(untrained_source: Path) -> None:
    source = open_source(untrained_source)
    model = L2PTransformer("z-image", dict(source.transformer_config), head_channels=(16, 32, 64, 128))
    features = torch.randn(2, model.trunk.dim, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    sizes: dict[str, list[float]] = {}
    for start in ("default", "kaiming"):
        made, _ = new_tensors(start, model, source, None, seed=0)
        head = DetailerHead(model.trunk.dim, (16, 32, 64, 128))
        head.load_state_dict({n.removeprefix("detailer_head."): v for n, v in made.items() if "head" in n})
        sizes[start] = rms = []
        for level in (4, 3, 2, 1):
            layer = head.get_submodule(f"dec{level}")
            layer.register_forward_hook(
                lambda _, __, out, rms=rms: rms.append(float(out.detach().square().mean()) ** 0.5)
            )
        head(pixels, features)
    assert all(0.3 < size < 3 for size in sizes["kaiming"])
    assert max(sizes["default"][1:]) < 0.2


def test_the_order_in_which_starts_are_joined_does_not_matter(untrained_source: Path) -> None:
    source = open_source(untrained_source)
    model = L2PTransformer("z-image", dict(source.transformer_config), head_channels=(8, 8))
    one, _ = new_tensors("kaiming+detail", model, source, None, seed=0)
    one = {name: value.clone() for name, value in one.items()}  # both are views of the model's own
    other, _ = new_tensors("detail+kaiming", model, source, None, seed=0)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("finest", [None, 1, 6, 11, 12, 64])
@pytest.mark.parametrize("has_vae", [True, False])
@pytest.mark.parametrize("images", [torch.zeros(1, 3, 64, 64), None])
def test_auto_is_the_first_measured_start_that_suits(
    images: Tensor | None, has_vae: bool, finest: int | None
) -> None:
    head = () if finest is None else (finest, 16)
    start = resolve_initialisation("auto", head, images, has_vae=has_vae)
    measurable = images is not None and has_vae
    starts = STARTS_WITH_IMAGES if measurable else STARTS_WITHOUT_IMAGES
    for better in starts[: starts.index(start)]:
        with pytest.raises(ArchError):
            check_initialisation(better, images, head)
    check_initialisation(start, images, head)
    assert measurable or "fitted" not in start


def test_a_conversion_reports_what_auto_stood_for(untrained_source: Path, tmp_path: Path) -> None:
    images = smooth_images(12, 32)
    report = convert(
        untrained_source, tmp_path / "gated", head_channels=(16, 8, 8, 8), calibration_images=images
    )
    assert report.initialisation == STARTS_WITH_IMAGES[0]
    assert {"latent_variance_explained", "velocity_left_by_filters"} <= report.measures.keys()
    written = json.loads((tmp_path / "gated/surgery_report.json").read_text())
    assert written["initialisation"] == STARTS_WITH_IMAGES[0]

    without_vae = Path(shutil.copytree(untrained_source, tmp_path / "source"))
    shutil.rmtree(without_vae / "vae")
    report = convert(without_vae, tmp_path / "out", head_channels=(8, 8), calibration_images=images)
    assert report.initialisation == STARTS_WITHOUT_IMAGES[0]


def test_paired_tokens_are_in_the_order_of_the_sources_own_patches(untrained_source: Path) -> None:
    source = open_source(untrained_source)
    layout = FAMILIES["z-image"].latent_embedder(source.transformer_config)
    images = smooth_images(1, 64)
    from diffusers import AutoencoderKL, ZImageTransformer2DModel

    vae = AutoencoderKL.from_pretrained(untrained_source / "vae")
    transformer = ZImageTransformer2DModel.from_pretrained(untrained_source / "transformer")
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode()
        expected, _, _ = transformer._patchify_image(latents[0].unsqueeze(1), 2, 1)
    [(patches, tokens)] = paired_tokens(source, layout, images, 16)
    torch.testing.assert_close(tokens, expected)
    assert torch.equal(patches, rearrange(images, "b c (h p) (w q) -> (b h w) (c p q)", p=16, q=16))


def test_a_larger_patch_is_paired_with_the_same_token_of_a_smaller_image(untrained_source: Path) -> None:
    source = open_source(untrained_source)
    layout = FAMILIES["z-image"].latent_embedder(source.transformer_config)
    [(patches, tokens)] = paired_tokens(source, layout, smooth_images(2, 128), 32)
    assert patches.shape == (2 * 16, 3 * 32 * 32)
    assert tokens.shape == (2 * 16, 64)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [(None, "needs calibration_images"), (torch.zeros(4, 64, 64), "wanted (N, 3, H, W)")],
)
def test_missing_or_misshapen_calibration_images_are_named(
    untrained_source: Path, tmp_path: Path, images: Tensor | None, complaint: str
) -> None:
    with pytest.raises(ArchError) as raised:
        convert(untrained_source, tmp_path / "out", initialisation="fitted", calibration_images=images)
    assert complaint in str(raised.value)
    assert not (tmp_path / "out").exists()

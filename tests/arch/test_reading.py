"""What an aligned trunk reads of pixels: the best linear estimate of what its source would have read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, L2PPipeline, L2PTransformer, convert, upscale
from l2p_arch.alignment import Alignment
from l2p_arch.patchify import pixels_to_patches
from l2p_arch.surgery.alignment import Seamlessness, fit_subspace
from torch import Tensor

PATCH, LATENTS = 4, 6


def world(count: int = 400) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 8, 8) of a few patterns, and latents (N, 6, 2, 2): linear in them, by a map that is far
    from the transpose of its own inverse, and a little noise that no map explains."""
    generator = torch.Generator().manual_seed(5)
    patterns = torch.randn(3 * PATCH**2, 10, generator=generator)
    patterns *= torch.linspace(1.5, 0.05, 10)
    factors = torch.randn(count, 4, 10, generator=generator)
    patches = factors @ patterns.T + 0.01 * torch.randn(count, 4, 3 * PATCH**2, generator=generator) + 0.2
    latents = factors @ torch.randn(10, LATENTS, generator=generator)
    latents += 0.1 * torch.randn(latents.shape, generator=generator)
    images = patches.view(count, 2, 2, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).reshape(count, 3, 8, 8)
    return images.contiguous(), latents.view(count, 2, 2, LATENTS).permute(0, 3, 1, 2).contiguous()


def fitted(reading: int) -> tuple[Alignment, Seamlessness]:
    alignment = Alignment(PATCH, LATENTS, reading=reading)
    return alignment, fit_subspace(alignment, *world())


def noised(alignment: Alignment, level: float, count: int = 20_000) -> tuple[Tensor, Tensor]:
    """What is read of noised images, and the source's own z_t with the noise that the subspace carries."""
    images, latents = (part.repeat(count // len(part), 1, 1, 1) for part in world())
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
    sigma = torch.full((len(images),), level)
    read, source_sigma = alignment.to_latents((1 - level) * images + level * noise, sigma)
    carried = torch.einsum("xr,bxhw->brhw", alignment.subspace, pixels_to_patches(noise, PATCH))
    blend = source_sigma.view(-1, 1, 1, 1)
    return read, (1 - blend) * latents + blend * carried


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.9])
def test_it_is_nearer_to_the_sources_input_than_the_subspace_alone(level: float) -> None:
    errors = []
    for reading in (0, 3 * PATCH**2):
        read, wanted = noised(fitted(reading)[0], level, count=2_000)
        errors.append(float((read - wanted).square().mean()))
    assert errors[1] < 0.8 * errors[0] or (level == 0.9 and errors[1] < errors[0])


@pytest.mark.parametrize("level", [0.05, 0.3, 0.7])
def test_no_linear_map_of_x_t_is_better(level: float) -> None:
    """Least squares on the very pairs, which knows nothing of the formula, finds no more than its own
    overfit."""
    alignment, _ = fitted(3 * PATCH**2)
    images, latents = (part.repeat(50, 1, 1, 1) for part in world())
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(8))
    x_t = (1 - level) * images + level * noise
    read, source_sigma = alignment.to_latents(x_t, torch.full((len(x_t),), level))
    carried = torch.einsum("xr,bxhw->brhw", alignment.subspace, pixels_to_patches(noise, PATCH))
    blend = source_sigma.view(-1, 1, 1, 1)
    wanted = ((1 - blend) * latents + blend * carried).permute(0, 2, 3, 1).reshape(-1, LATENTS)
    inputs = pixels_to_patches(x_t, PATCH).permute(0, 2, 3, 1).reshape(len(wanted), -1)
    inputs = torch.cat((inputs, torch.ones(len(inputs), 1)), dim=1).double()
    solved = torch.linalg.lstsq(inputs, wanted.double()).solution
    least = float((inputs @ solved - wanted).square().mean())
    left = float((read.permute(0, 2, 3, 1).reshape(-1, LATENTS) - wanted).square().mean())
    assert least <= left < 1.02 * least + 2e-3


def test_pure_noise_is_read_as_the_subspace_reads_it() -> None:
    noise, ones = torch.randn(5, 3, 8, 8), torch.ones(5)
    plain, corrected = (fitted(reading)[0].to_latents(noise, ones)[0] for reading in (0, 20))
    torch.testing.assert_close(corrected, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reading", [-1, 2.5, "wiener", None])
def test_a_config_with_an_impossible_reading_is_refused(reading: Any) -> None:
    with pytest.raises(ArchError, match="an alignment's reading is"):
        Alignment(PATCH, LATENTS, reading=reading)


def test_the_report_tells_how_much_of_the_latents_is_read() -> None:
    plain, corrected = fitted(0)[1], fitted(20)[1]
    assert plain.latents_from_reading == plain.latents_from_subspace == corrected.latents_from_subspace
    assert corrected.latents_from_reading > 0.9 > plain.latents_from_subspace


def test_images_that_never_vary_in_some_directions_give_numbers() -> None:
    """Flat pictures fill three directions of 48; the others have no variance at all."""
    flat = (torch.rand(100, 3, 1, 1) * 2 - 1).expand(-1, -1, 8, 8)
    alignment = Alignment(PATCH, LATENTS, reading=48)
    measures = fit_subspace(alignment, flat, torch.randn(100, LATENTS, 2, 2))
    assert all(bool(torch.isfinite(value).all()) for value in alignment.state_dict().values())
    assert 0 <= measures.latents_from_reading <= 1
    for level in (0.0, 1e-6, 1.0):
        read, _ = alignment.to_latents(torch.randn(2, 3, 8, 8), torch.full((2,), level))
        assert bool(torch.isfinite(read).all())


def test_a_model_keeps_its_reading_through_files_and_enlargement(
    untrained_source: Path, tmp_path: Path
) -> None:
    images = torch.rand(40, 3, 64, 64) * 2 - 1
    options: dict[str, Any] = {"recipe": "aligned", "decoder": "low-rank", "head_channels": (8, 8, 16, 16)}
    options["calibration_images"] = images
    for name in ("wiener", "subspace"):
        convert(untrained_source, tmp_path / name, reading=name, **options)
    read, plain = (
        L2PTransformer.from_pretrained(tmp_path / name / "transformer") for name in ("wiener", "subspace")
    )
    assert read.config["alignment"]["version"] == 4
    assert plain.config["alignment"]["version"] == 4 and "aligner.directions" not in plain.state_dict()
    assert read.aligner.directions.shape == (768, 128)
    assert float(read.aligner.correction.abs().max()) > 0
    upscale(tmp_path / "wiener", tmp_path / "large", patch_size=32)
    large = L2PTransformer.from_pretrained(tmp_path / "large" / "transformer")
    assert large.config["alignment"]["version"] == 4
    torch.testing.assert_close(large.aligner.state_dict(), read.aligner.state_dict())
    pipeline = L2PPipeline.from_pretrained(tmp_path / "wiener")
    assert pipeline("two", height=64, width=64, num_inference_steps=2).images[0].size == (64, 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "aligned", "reading": "magic"}, "unknown reading 'magic'; known: auto, subspace, wiener"),
        ({"recipe": "paper", "reading": "wiener"}, "reading 'wiener' belongs to recipe = \"aligned\""),
    ],
)
def test_a_reading_that_cannot_be_had_is_refused(
    untrained_source: Path, tmp_path: Path, options: dict[str, str], said: str
) -> None:
    with pytest.raises(ArchError, match=said):
        convert(untrained_source, tmp_path / "out", calibration_images=torch.zeros(4, 3, 64, 64), **options)
    assert not (tmp_path / "out").exists()

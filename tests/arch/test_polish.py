"""The passes over a finished image: set at the surgery, kept in the config, and what enlarging leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, L2PTransformer, convert
from l2p_arch.alignment import LEAST_SIGMA
from l2p_arch.cli import main
from l2p_arch.polish import enlarged_sigma, grain_sigmas, polished
from l2p_arch.surgery.settings_check import check_surgery_settings
from l2p_arch.surgery.upscale import upscale
from l2p_mini.paths import PIXEL_MODEL
from PIL import Image
from torch import Tensor

HEAD = (8, 8, 16, 16)
PASSES = (0.8, 0.4, 0.2, 0.02)
CONFIG = "transformer/config.json"


@pytest.fixture(scope="module")
def redrawing(
    untrained_source: Path, flat_halves: Callable[..., Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("polish") / "out"
    options: dict[str, Any] = {"head_channels": HEAD, "calibration_images": flat_halves(24), "polish": PASSES}
    convert(untrained_source, out, recipe="aligned", decoder="neighbours", **options)
    return out


def passes_of(model: Path) -> tuple[float, ...]:
    return L2PTransformer.from_pretrained(model / "transformer", local_files_only=True).polish


def test_the_surgery_writes_the_passes_that_it_was_given(redrawing: Path) -> None:
    assert passes_of(redrawing) == PASSES
    assert json.loads((redrawing / CONFIG).read_text())["alignment"]["polish"] == list(PASSES)


def test_an_enlarged_model_keeps_the_passes_that_take_off_grain(redrawing: Path, tmp_path: Path) -> None:
    upscale(redrawing, tmp_path / "large", patch_size=32)
    ratios = [sigma / (1 - sigma) for sigma in passes_of(tmp_path / "large")]
    assert ratios == pytest.approx([2 * 0.2 / 0.8, 2 * 0.02 / 0.98])


@pytest.mark.parametrize(
    ("sigmas", "grain"),
    [
        (PASSES, (0.2, 0.02)),
        ((0.2, 0.02), (0.2, 0.02)),
        ((0.4,), (0.4,)),  # as models of before have it
        ((0.9, 0.25), (0.25,)),
        ((), ()),
    ],
)
def test_grain_is_what_the_low_passes_take(sigmas: tuple[float, ...], grain: tuple[float, ...]) -> None:
    assert grain_sigmas(sigmas) == grain
    for factor in (2, 4):  # an enlarged model's sigmas say the same of its block means
        large = [enlarged_sigma(sigma, factor) for sigma in sigmas]
        assert grain_sigmas(large, factor) == pytest.approx([enlarged_sigma(one, factor) for one in grain])


@pytest.mark.parametrize(
    ("recipe", "polish", "said"),
    [
        ("aligned", 1.0, "polish 1.0 is not a sigma in"),
        ("aligned", [0.8, -0.1], "polish -0.1 is not a sigma in"),
        ("aligned", "high", "polish high is not a sigma in"),
        ("aligned", None, "polish None is not a sigma in"),
        ("paper", 0.2, 'polish 0.2 belongs to recipe = "aligned"'),
        ("paper", (0.8, 0.2), 'belongs to recipe = "aligned"'),
    ],
)
def test_passes_that_cannot_be_had_are_refused(
    untrained_source: Path,
    flat_halves: Callable[..., Tensor],
    tmp_path: Path,
    recipe: str,
    polish: Any,
    said: str,
) -> None:
    with pytest.raises(ArchError, match=said):
        convert(
            untrained_source,
            tmp_path / "out",
            recipe=recipe,
            head_channels=HEAD,
            calibration_images=flat_halves(24),
            polish=polish,
        )
    assert not (tmp_path / "out").exists()
    table = {"patch_size": 16, "head_channels": HEAD, "initialisation": "auto", "table": "surgery."}
    with pytest.raises(ArchError, match=r"surgery\.polish"):
        check_surgery_settings(recipe=recipe, polish=polish, **table)


@pytest.mark.parametrize(
    ("words", "passes"), [(["--polish", "0.6", "0.1"], (0.6, 0.1)), (["--polish"], ()), ([], (0.2, 0.02))]
)
def test_the_command_line_takes_them(
    untrained_source: Path,
    flat_halves: Callable[..., Tensor],
    tmp_path: Path,
    words: list[str],
    passes: tuple[float, ...],
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, picture in enumerate(flat_halves(24)):
        array = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{index}.png")
    more = ["--recipe", "aligned", "--decoder", "neighbours", "--images", str(folder), "--image-size", "64"]
    assert main(["convert", str(untrained_source), str(tmp_path / "out"), *more, *words]) == 0
    assert passes_of(tmp_path / "out") == passes


@pytest.mark.parametrize("passes", [(0.2, 0.02), (0.02,) * 5, (0.8, 0.049, 0.001), ()])
def test_a_model_that_sees_its_image_leaves_it_as_it_is(passes: tuple[float, ...]) -> None:
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def velocity(x_t: Tensor, sigma: Tensor) -> Tensor:  # as a decoder without filters answers it
        return (x_t - image) / sigma.clamp_min(LEAST_SIGMA).view(-1, 1, 1, 1)

    torch.testing.assert_close(polished(image, passes, velocity, least_sigma=LEAST_SIGMA), image)


def test_a_model_says_by_what_it_divides(redrawing: Path, tmp_path: Path) -> None:
    model = L2PTransformer.from_pretrained(redrawing / "transformer", local_files_only=True)
    assert model.least_sigma == LEAST_SIGMA
    shipped = L2PTransformer.from_pretrained(PIXEL_MODEL / "transformer", local_files_only=True)
    assert shipped.least_sigma == 0  # its filters answer the velocity


def test_an_enlarged_model_leaves_out_passes_below_what_its_small_one_divides_by() -> None:
    asked: list[float] = []

    def velocity(x_t: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma[0]))
        return torch.zeros_like(x_t)

    low, high = enlarged_sigma(0.02, 4), enlarged_sigma(0.2, 4)
    polished(torch.zeros(1, 3, 8, 8), (high, low), velocity, least_sigma=LEAST_SIGMA, enlargement=4)
    assert asked == [pytest.approx(high)]

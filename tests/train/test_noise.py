"""Noise levels: densities against their closed forms, and randomness as a function of the sample counter."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_train import TrainConfig
from l2p_train.noise import SIGMA_DISTRIBUTIONS, draw, shift_sigma


def config(**changes) -> TrainConfig:
    return TrainConfig(model=Path("m"), corpus=Path("c"), output=Path("o"), **changes)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0.1, 10))
def test_the_shift_keeps_the_ends_and_the_inverse_undoes_it(sigma, shift):
    value = torch.tensor(sigma, dtype=torch.float64)
    shifted = shift_sigma(value, shift)
    assert 0 <= float(shifted) <= 1 + 1e-12
    assert abs(float(shift_sigma(shifted, 1 / shift)) - sigma) < 1e-9
    for end in (0.0, 1.0):
        assert abs(float(shift_sigma(torch.tensor(end, dtype=torch.float64), shift)) - end) < 1e-12


def test_shift_3_moves_the_middle_to_three_quarters():
    assert float(shift_sigma(torch.tensor(0.5), 3.0)) == 0.75


def closed_form_cdf(name: str, sigma: np.ndarray, settings: TrainConfig) -> np.ndarray:
    """Return P(sigma' <= sigma) of a distribution, written without its quantile function."""
    shift = settings.noise_shift
    base = sigma / (shift - (shift - 1) * sigma)
    if name == "uniform":
        return base
    logit = (np.log(base / (1 - base)) - settings.logit_mean) / settings.logit_std
    return 0.5 * (1 + torch.erf(torch.from_numpy(logit) / 2**0.5)).numpy()


@pytest.mark.parametrize("name", ["uniform", "logit-normal"])
@pytest.mark.parametrize("shift", [1.0, 3.0, 4.0])
def test_sampled_sigmas_follow_the_closed_form(name, shift):
    settings = config(sigma_distribution=name, noise_shift=shift, logit_mean=-0.5, logit_std=1.2, seed=1)
    sigma = np.sort([draw(settings, counter, 1, 1).sigma for counter in range(3000)])
    assert sigma[0] > 0 and sigma[-1] <= 1
    inside = sigma[sigma < 1 - 1e-9]
    distance = np.abs(closed_form_cdf(name, inside, settings) - (np.arange(len(inside)) + 0.5) / len(sigma))
    assert distance.max() < 1.63 / np.sqrt(len(sigma))  # Kolmogorov-Smirnov at 1 %


def test_the_discrete_form_has_exactly_its_points():
    settings = config(sigma_distribution="discrete", sigma_points=500, noise_shift=3.0)
    u = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    values, counts = SIGMA_DISTRIBUTIONS["discrete"](u, settings).unique(return_counts=True)
    expected = shift_sigma(torch.linspace(1 / 500, 1, 500, dtype=torch.float64), 3.0)
    torch.testing.assert_close(values, expected)
    assert counts.tolist() == [100] * 500


def test_a_draw_is_a_function_of_seed_and_counter_alone():
    one, again = draw(config(seed=3), 17, 8, 8), draw(config(seed=3), 17, 8, 8)
    assert one.sigma == again.sigma and torch.equal(one.noise, again.noise)
    for other in (draw(config(seed=3), 18, 8, 8), draw(config(seed=4), 17, 8, 8)):
        assert other.sigma != one.sigma and not torch.equal(other.noise, one.noise)


def test_caption_dropout_neither_moves_sigma_nor_noise_and_has_its_rate():
    kept = [draw(config(), counter, 2, 2) for counter in range(2000)]
    dropped = [draw(config(caption_dropout=0.1), counter, 2, 2) for counter in range(2000)]
    assert not any(one.drop_caption for one in kept)
    assert 0.07 < np.mean([one.drop_caption for one in dropped]) < 0.13
    assert all(
        a.sigma == b.sigma and torch.equal(a.noise, b.noise) for a, b in zip(kept, dropped, strict=True)
    )


def test_samples_of_the_polish_have_its_sigma_less_noise_and_their_share_and_leave_the_others_alone():
    plain = [draw(config(), counter, 16, 16) for counter in range(1000)]
    some = [draw(config(polish_share=0.2), counter, 16, 16, polish=0.25) for counter in range(1000)]
    polished = [one for one in some if one.sigma == 0.25]
    assert 0.16 < len(polished) / 1000 < 0.24
    sizes = np.array([float(one.noise.std()) for one in polished])
    assert sizes.max() < 1 and sizes.min() < 0.02 and 0.1 < sizes.mean() < 0.4
    smooth = [float((one.noise[:, :, 1:] - one.noise[:, :, :-1]).std() / one.noise.std()) for one in polished]
    assert min(smooth) < 0.3 and max(smooth) > 1.2  # cells of 8 px, and of 1
    assert all(
        torch.equal(a.noise, b.noise) and a.sigma == b.sigma
        for a, b in zip(plain, some, strict=True)
        if b.sigma != 0.25
    )
    assert draw(config(polish_share=0.2), 3, 9, 7, polish=0.25).noise.shape == (3, 9, 7)


def test_stratified_sigmas_cover_every_window_evenly():
    settings = config(stratified_sigma=True, noise_shift=1.0)
    sigma = np.sort([draw(settings, counter, 1, 1).sigma for counter in range(1000, 1032)])
    assert (
        np.diff(np.concatenate(([0.0], sigma, [1.0]))).max() < 0.09
    )  # 32 random ones leave gaps twice as wide

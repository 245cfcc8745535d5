"""Eq. 5."""

from types import SimpleNamespace

import pytest
import torch
from l2p_train.objective import LOSS_WEIGHTINGS, interpolate, l2p_loss, velocity_target, weighting


def test_sigma_0_is_the_image_and_sigma_1_is_the_noise():
    x_0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    x_t = interpolate(x_0, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(x_t[0], x_0[0])
    assert torch.equal(x_t[1], noise[1])


def test_the_target_is_the_derivative_of_x_t_in_sigma():
    x_0, noise = torch.randn(1, 3, 4, 4).double(), torch.randn(1, 3, 4, 4).double()
    sigma = torch.tensor([0.3], dtype=torch.float64)
    derivative = (interpolate(x_0, noise, sigma + 1e-4) - interpolate(x_0, noise, sigma - 1e-4)) / 2e-4
    torch.testing.assert_close(derivative, velocity_target(x_0, noise))


def test_the_true_velocity_has_no_loss_and_a_constant_error_has_its_square():
    x_0, noise, sigma = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.rand(3)
    for error in (0.0, 0.5):
        loss = l2p_loss(lambda *_, e=error: noise - x_0 + e, x_0, noise, sigma, [{}] * 3)
        torch.testing.assert_close(loss, torch.full((3,), error**2), atol=1e-6, rtol=1e-5)


def test_the_model_sees_x_t_and_a_float32_sigma():
    x_0, noise, sigma = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.rand(2)

    def model(pixels, time, conditioning):
        assert torch.equal(pixels, interpolate(x_0, noise, sigma))
        assert time.dtype == torch.float32
        assert len(conditioning) == 2
        return pixels

    l2p_loss(model, x_0, noise, sigma, [{}, {}])


def test_weightings_have_mean_one_over_a_uniform_sigma():
    sigma = (torch.arange(100_000) + 0.5) / 100_000
    for name, weight in LOSS_WEIGHTINGS.items():
        mean = torch.as_tensor(weight(sigma)).float().mean()
        assert abs(float(mean) - 1) < 1e-3, name


def test_the_weight_of_the_closed_forms_error_is_its_inverse_square_of_mean_one():
    alignment = SimpleNamespace(errors=torch.ones(2), error=lambda sigma: 0.2 + 0.6 * (1 - sigma))
    weight = weighting("error", SimpleNamespace(aligner=alignment))
    sigma = torch.linspace(0, 1, 2001)
    assert abs(float(weight(sigma).mean()) - 1) < 1e-3
    assert float(weight(torch.tensor([1.0])) / weight(torch.tensor([0.0]))) == pytest.approx(16, rel=1e-4)
    assert weighting("none", None) is LOSS_WEIGHTINGS["none"]

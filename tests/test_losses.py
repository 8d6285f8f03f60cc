"""Errors and losses against independent computations."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from skimage.metrics import structural_similarity

from skanomaly._losses import absolute_error, feature_error, gradient_penalty, squared_error, ssim_error


@pytest.fixture
def pair():
    return torch.rand(2, 3, 2, 24, 20, generator=torch.Generator().manual_seed(0)).unbind(0)


def test_pixel_errors(pair):
    x, y = pair
    assert_allclose(squared_error(x, y), ((x - y).numpy() ** 2).mean(1), rtol=1e-5)
    assert_allclose(absolute_error(x, y), np.abs((x - y).numpy()).mean(1), rtol=1e-5)
    assert_allclose(squared_error(x[:, :1], y[:, :1]), ((x - y).numpy() ** 2)[:, 0], rtol=1e-5)


def test_feature_error_is_a_mean_over_features():
    f, g = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, 0.0]])
    assert feature_error(f, g).tolist() == [2.0, 4.5]


def test_ssim_agrees_with_scikit_image(pair):
    x, y = (images.double()[:, :1] for images in pair)
    for a, b, error in zip(x[:, 0].numpy(), y[:, 0].numpy(), ssim_error(x, y).numpy()):
        _, expected = structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
        )
        assert_allclose(1 - error[5:-5, 5:-5], expected[5:-5, 5:-5], atol=1e-10)


def test_ssim_of_equal_and_of_constant_images():
    x = torch.rand(2, 1, 12, 12)
    assert ssim_error(x, x).abs().max() < 1e-5
    a, b, c1 = 0.3, 0.8, 1e-4
    error = ssim_error(torch.full((1, 1, 12, 12), a), torch.full((1, 1, 12, 12), b))
    assert_allclose(1 - error, (2 * a * b + c1) / (a * a + b * b + c1), rtol=1e-3)


def test_penalty_of_a_linear_critic():
    """The slope is |w| everywhere, so the penalty is (|w| - 1)^2 for any images."""
    w = torch.randn(1, 1, 6, 6)
    x, fake = torch.randn(2, 4, 1, 6, 6)
    penalty = gradient_penalty(lambda u: (u * w).sum((1, 2, 3)), x, fake)
    assert_allclose(penalty, (w.norm() - 1) ** 2, rtol=1e-5)


def test_penalty_interpolates_one_place_per_sample():
    seen = []

    def critic(u):
        seen.append(u.detach())
        return u.square().sum((1, 2, 3)) / 2

    x, fake = torch.ones(64, 2, 3, 3), torch.full((64, 2, 3, 3), 3.0)
    penalty = gradient_penalty(critic, x, fake)
    places = seen[0].flatten(1)
    assert (places == places[:, :1]).all()
    assert 1 <= places.min() < 1.2
    assert 2.8 < places.max() <= 3
    assert len(places[:, 0].unique()) == 64
    # The gradient of |u|^2 / 2 is u.
    assert_allclose(penalty.detach(), ((places.norm(dim=1) - 1) ** 2).mean(), rtol=1e-5)


def test_penalty_at_a_gradient_of_zero_has_a_derivative():
    scale = torch.zeros((), requires_grad=True)
    gradient_penalty(lambda u: (u * scale).sum((1, 2, 3)), *torch.rand(2, 3, 1, 4, 4)).backward()
    assert torch.isfinite(scale.grad)

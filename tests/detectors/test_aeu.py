import numpy as np
import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose

from skanomaly import AEU
from skanomaly._losses import likelihood_error, squared_error
from skanomaly.networks.autoencoder import LOG_VARIANCES, UncertainAutoEncoder
from skanomaly.testing import make_images, tiny


def test_the_loss():
    mean, x, log_variance = torch.randn(3, 2, 3, 4, 5).double()
    assert_allclose(likelihood_error((mean, torch.zeros_like(mean)), x), squared_error(mean, x), rtol=1e-12)
    by_hand = ((x - mean) ** 2 / log_variance.exp() + log_variance).mean(1)
    assert_allclose(likelihood_error((mean, log_variance), x), by_hand, rtol=1e-12)
    gaussian = -2 * torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(x) - np.log(2 * np.pi)
    assert_allclose(likelihood_error((mean, log_variance), x), gaussian.mean(1), rtol=1e-10)


def test_the_loss_is_smallest_where_the_variance_is_the_squared_error():
    mean, x = torch.randn(2, 1, 1, 4, 5).double()
    best = (x - mean).square().log().requires_grad_(True)
    (gradient,) = torch.autograd.grad(likelihood_error((mean, best), x).sum(), best)
    assert_allclose(gradient, 0, atol=1e-12)
    assert_allclose(likelihood_error((mean, best), x).detach(), 1 + (x - mean).square().log()[:, 0])
    for step in (-0.1, 0.1):
        worse = likelihood_error((mean, best + step), x)
        assert (worse > likelihood_error((mean, best), x)).all()


def test_log_variances_stay_within_bounds():
    net = UncertainAutoEncoder((2, 16, 16), 2, hidden_size=16, width=2, n_levels=2)
    net.decoder.up[-1].weight.data.mul_(1e6)
    mean, log_variance = net.predict(torch.randn(4, 2, 16, 16))
    assert mean.shape == log_variance.shape == (4, 2, 16, 16)
    assert (log_variance.min(), log_variance.max()) == LOG_VARIANCES
    assert mean.abs().max() > 100, "values are free"


def test_the_score_counts_errors_by_their_variance():
    X = make_images((5, 20, 14))
    detector = tiny(AEU, max_epochs=3).fit(X)
    with torch.no_grad():
        mean, log_variance = detector.network_.predict(torch.from_numpy(X[:, None] / 255).float() * 2 - 1)
    x = X / 255 * 2 - 1
    expected = (x - mean[:, 0].numpy()) ** 2 / np.exp(log_variance[:, 0].numpy())
    assert_allclose(detector.anomaly_map(X), expected, rtol=1e-3, atol=1e-5)
    assert_allclose(-detector.score_samples(X), expected.mean((1, 2)), rtol=1e-4)
    components = detector.score_components(X)
    assert_allclose(components["residual"], ((x - mean[:, 0].numpy()) ** 2).mean((1, 2)), rtol=1e-4)
    assert_allclose(components["log_variance"], log_variance.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_log_variances_of_all_channels():
    X = make_images((5, 20, 14, 3))
    detector = tiny(AEU).fit(X)
    with torch.no_grad():
        _, log_variance = detector.network_.predict(
            torch.from_numpy(np.moveaxis(X, 3, 1) / 255).float() * 2 - 1
        )
    expected = log_variance.mean((1, 2, 3))
    assert_allclose(detector.score_components(X)["log_variance"], expected, rtol=1e-4, atol=1e-5)


def test_one_step_moves_encoder_and_decoder():
    X = make_images()
    one, two = (tiny(AEU, max_epochs=epochs).fit(X).network_ for epochs in (1, 2))
    for (name, a), b in zip(one.named_parameters(), two.parameters()):
        assert not torch.equal(a, b), name


def test_it_is_unsure_where_images_differ():
    rng = np.random.default_rng(0)
    X = np.full((64, 16, 16), 100.0)
    X[:, :, 8:] += rng.uniform(-100, 100, (64, 16, 8))
    detector = tiny(AEU, max_epochs=60, width=8, lr=0.01).fit(X)
    with torch.no_grad():
        _, log_variance = detector.network_.predict(torch.from_numpy(X[:, None] / 100).float() - 1)
    assert log_variance[..., 9:].mean() > log_variance[..., :7].mean() + 2


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(AEU(hidden_size=128, width=8, batch_size=16, max_epochs=25, random_state=0))

import numpy as np
import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from steps import run_step

from skanomaly import ContextVAE
from skanomaly._random import seeded
from skanomaly.detectors import context_vae
from skanomaly.detectors.context_vae import ContextVariational
from skanomaly.networks.autoencoder import VariationalAutoEncoder
from skanomaly.networks.gaussian import draw, kl_divergence
from skanomaly.testing import make_images, tiny


def network():
    with seeded(0):
        return VariationalAutoEncoder((1, 16, 16), 2, hidden_size=16, width=2, n_levels=2)


def black(x):
    return torch.zeros_like(x)


def test_the_losses():
    with seeded(1):
        x = torch.rand(8, 1, 16, 16)
    options = {"erase": black, "kl_weight": 0.3, "context_weight": 0.2}
    losses, moved = run_step(ContextVariational, network(), x, **options)
    assert moved == {"encoder", "decoder"}
    net = network().train()
    with seeded(0), torch.no_grad():
        posterior = net.posterior(x)
        expected = {
            "reconstruction_loss": (net.decoder(draw(*posterior)) - x).square().mean(),
            "kl_loss": kl_divergence(*posterior).mean(),
            "context_loss": (net.decoder(net.posterior(black(x))[0]) - x).square().mean(),
        }
    for name, value in expected.items():
        assert_allclose(losses[name], value, rtol=1e-4, err_msg=name)
    whole = losses["reconstruction_loss"] + 0.3 * losses["kl_loss"]
    assert_allclose(losses["train_loss"], 0.8 * whole + 0.2 * losses["context_loss"], rtol=1e-5)


def test_held_out_images_are_whole():
    net = network().eval()
    with seeded(0), torch.no_grad():
        x = torch.rand(4, 1, 16, 16)
        mean, log_variance = net.posterior(x)
        error, divergence = (net.decoder(mean) - x).square().mean(), kl_divergence(mean, log_variance).mean()
        training = ContextVariational(net, stage="s", erase=black, kl_weight=0.3, context_weight=0.2)
        assert_allclose(training.validate(net, x), error + 0.3 * divergence, rtol=1e-5)


def test_what_is_erased(monkeypatch):
    asked = []

    def erase(x, *, area, value):
        asked.append((area, value))
        return torch.full_like(x, value)

    X = make_images()
    whole = tiny(ContextVAE, erased_area=0.2).fit(X).history_["reconstruction"]
    monkeypatch.setattr(context_vae, "erase_squares", erase)
    erased = tiny(ContextVAE, erased_area=0.2).fit(X).history_["reconstruction"]
    assert set(asked) == {(0.2, -1.0)}
    assert whole[-1]["context_loss"] != erased[-1]["context_loss"]


def test_score_and_map():
    X = make_images((5, 20, 14))
    detector = tiny(ContextVAE, kl_weight=0.7).fit(X)
    components = detector.score_components(X)
    assert_allclose(-detector.score_samples(X), components["residual"] + 0.7 * components["kl"], rtol=1e-5)
    assert_allclose(components["elbo"], -detector.score_samples(X), rtol=1e-6)
    error = ((detector.reconstruct(X) - X) / 255 * 2) ** 2
    assert_allclose(components["residual"], error.mean((1, 2)), rtol=1e-4)
    maps = detector.anomaly_map(X)
    assert_allclose(maps.mean((1, 2)), components["product"], rtol=1e-5)
    x = torch.from_numpy(X[:, None] / 255).float() * 2 - 1
    x.requires_grad_(True)
    net = detector.network_
    mean, log_variance = net.posterior(x)
    bound = (net.decoder(mean) - x).square().mean((1, 2, 3)) + 0.7 * kl_divergence(mean, log_variance)
    (gradient,) = torch.autograd.grad(bound.sum(), x)
    product = np.sqrt(error) * gradient[:, 0].abs().numpy()
    assert_allclose(maps, product, rtol=1e-2, atol=1e-3 * product.max())


def test_only_whole_images_or_only_erased_ones():
    X = make_images()
    plain = tiny(ContextVAE, max_epochs=2).fit(X).score_samples(X)
    for weight in (0.0, 1.0):
        assert not np.array_equal(
            plain, tiny(ContextVAE, context_weight=weight, max_epochs=2).fit(X).score_samples(X)
        )


@pytest.mark.parametrize("parameters", [{"context_weight": 1.5}, {"erased_area": 0.0}, {"kl_weight": -1.0}])
def test_bad_parameters(parameters):
    with pytest.raises(
        ValueError, match=f"'{next(iter(parameters))}' parameter of ContextVAE must be a float"
    ):
        tiny(ContextVAE, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(ContextVAE(hidden_size=128, width=8, batch_size=16, max_epochs=25, random_state=0))

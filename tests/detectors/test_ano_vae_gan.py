import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from steps import assert_descends, run_step
from torch.nn.functional import softplus

from skanomaly import AnoVAEGAN
from skanomaly._losses import absolute_error
from skanomaly._random import seeded
from skanomaly.detectors.ano_vae_gan import AnoVAEGANNetwork, VariationalAdversarial
from skanomaly.networks.gaussian import draw, kl_divergence
from skanomaly.testing import make_images, tiny
from skanomaly.training import Variational


def network():
    with seeded(0):
        return AnoVAEGANNetwork((1, 16, 16), 2, hidden_size=16, width=2, n_levels=2)


def images():
    with seeded(1):
        return torch.rand(8, 1, 16, 16)


def test_the_losses_and_who_moves():
    options = {"kl_weight": 0.3, "adversarial_weight": 0.7}
    losses, moved = run_step(VariationalAdversarial, network(), images(), **options)
    assert moved == {"encoder", "decoder", "discriminator"}
    net, x = network().train(), images()
    with seeded(0), torch.no_grad():
        posterior = net.posterior(x)
        y = net.decoder(draw(*posterior))
        real, fake = net.discriminator(x), net.discriminator(y)
        expected = {
            "reconstruction_loss": (y - x).abs().mean(),
            "kl_loss": kl_divergence(*posterior).mean(),
            "discriminator_loss": softplus(-real).mean() + softplus(fake).mean(),
        }
    for name, value in expected.items():
        assert_allclose(losses[name], value, rtol=1e-4, err_msg=name)
    total = losses["reconstruction_loss"] + 0.3 * losses["kl_loss"] + 0.7 * losses["adversarial_loss"]
    assert_allclose(losses["train_loss"], total, rtol=1e-5)


def test_the_generator_is_moved_by_the_new_discriminator():
    options = {"kl_weight": 0.3, "adversarial_weight": 5.0}
    new = network()
    run_step(VariationalAdversarial, new, images(), lr=0.1, **options)

    def loss(net, x):
        posterior = net.posterior(x)
        y = net.decoder(draw(*posterior))
        adversarial = softplus(-new.discriminator(y)).mean()
        return (y - x).abs().mean() + 0.3 * kl_divergence(*posterior).mean() + 5 * adversarial

    assert_descends(VariationalAdversarial, network(), images(), loss, {"encoder", "decoder"}, **options)


def test_the_discriminator_learns():
    def loss(net, x):
        y = net.decoder(draw(*net.posterior(x)))
        return softplus(-net.discriminator(x)).mean() + softplus(net.discriminator(y)).mean()

    options = {"kl_weight": 0.3, "adversarial_weight": 5.0}
    assert_descends(VariationalAdversarial, network(), images(), loss, {"discriminator"}, **options)


def test_weights_are_heard():
    detector = tiny(AnoVAEGAN, kl_weight=3.0, adversarial_weight=7.0).fit(make_images())
    (epoch,) = detector.history_["reconstruction"]
    expected = epoch["reconstruction_loss"] + 3 * epoch["kl_loss"] + 7 * epoch["adversarial_loss"]
    assert_allclose(epoch["train_loss"], expected, rtol=1e-5)


def test_without_its_weight_it_is_a_variational_autoencoder():
    first, second = network(), network()
    losses, moved = run_step(VariationalAdversarial, first, images(), kl_weight=0.3, adversarial_weight=0.0)
    expected, _ = run_step(Variational, second, images(), kl_weight=0.3, error=absolute_error)
    assert moved == {"encoder", "decoder"}
    assert losses == expected
    for a, b in zip(first.encoder.parameters(), second.encoder.parameters()):
        assert torch.equal(a, b)


def test_the_score_is_the_mean_absolute_error():
    X = make_images((5, 20, 14))
    detector = tiny(AnoVAEGAN).fit(X)
    error = abs((detector.reconstruct(X) - X) / 255 * 2)
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-5)
    assert_allclose(-detector.score_samples(X), error.mean((1, 2)), rtol=1e-4)
    assert set(detector.score_components(X)) == {"residual", "kl"}


@pytest.mark.parametrize("name", ["kl_weight", "adversarial_weight"])
def test_bad_parameters(name):
    with pytest.raises(ValueError, match=f"'{name}' parameter of AnoVAEGAN must be a float"):
        tiny(AnoVAEGAN, **{name: -1.0}).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(AnoVAEGAN(hidden_size=128, width=8, batch_size=16, max_epochs=25, random_state=0))

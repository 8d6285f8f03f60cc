import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from steps import assert_descends, run_step
from torch import nn
from torch.nn.functional import softplus

from skanomaly import GANomaly
from skanomaly._random import seeded
from skanomaly.detectors.ganomaly import EncoderDecoderEncoder, GANomalyNetwork
from skanomaly.testing import make_images, tiny

WEIGHTS = {"reconstruction": 50.0, "code": 3.0, "adversarial": 2.0}


def network():
    with seeded(0):
        return GANomalyNetwork((1, 16, 16), 2, hidden_size=16, width=2, n_levels=2)


def images():
    with seeded(1):
        return torch.rand(8, 1, 16, 16)


def test_the_losses_and_who_moves():
    losses, moved = run_step(EncoderDecoderEncoder, network(), images(), weights=WEIGHTS)
    assert moved == {"encoder", "decoder", "second_encoder", "discriminator"}
    net, x = network().train(), images()
    with torch.no_grad():
        z = net.encoder(x)
        y = net.decoder(z)
        features = net.discriminator.features
        expected = {
            "reconstruction_loss": (y - x).abs().mean(),
            "code_loss": (z - net.second_encoder(y)).square().mean(),
            "adversarial_loss": (features(x) - features(y)).square().mean(),
            "discriminator_loss": (softplus(-net.discriminator(x)) + softplus(net.discriminator(y))).mean()
            / 2,
        }
    for name, value in expected.items():
        assert_allclose(losses[name], value, rtol=1e-4, err_msg=name)
    total = sum(weight * losses[f"{name}_loss"] for name, weight in WEIGHTS.items())
    assert_allclose(losses["train_loss"], total, rtol=1e-5)
    only = dict.fromkeys(WEIGHTS, 0.0)
    _, moved = run_step(EncoderDecoderEncoder, network(), images(), weights=only)
    assert moved == {"discriminator"}


def test_steps_go_down_their_gradients():
    def loss(net, x):
        z = net.encoder(x)
        y = net.decoder(z)
        features = net.discriminator.features
        code = (z - net.second_encoder(y)).square().mean()
        adversarial = (features(x) - features(y)).square().mean()
        return 50 * (y - x).abs().mean() + 3 * code + 2 * adversarial

    generator = {"encoder", "decoder", "second_encoder"}
    assert_descends(EncoderDecoderEncoder, network(), images(), loss, generator, weights=WEIGHTS)

    def loss(net, x):
        y = net.decoder(net.encoder(x))  # from before the generator's step
        return (softplus(-net.discriminator(x)) + softplus(net.discriminator(y))).mean() / 2

    assert_descends(EncoderDecoderEncoder, network(), images(), loss, {"discriminator"}, weights=WEIGHTS)


def test_weights_are_heard():
    weights = {f"{name}_weight": value for name, value in WEIGHTS.items()}
    (epoch,) = tiny(GANomaly, **weights).fit(make_images()).history_["adversarial"]
    total = sum(weight * epoch[f"{name}_loss"] for name, weight in WEIGHTS.items())
    assert_allclose(epoch["train_loss"], total, rtol=1e-5)


def test_the_optimisers_are_those_of_the_paper():
    training = EncoderDecoderEncoder(network(), stage="s", weights=WEIGHTS, lr=2e-4)
    training.initialize()
    for optimizer in (training.optimizer_, training.optimizer_discriminator_):
        assert optimizer.defaults["betas"] == (0.5, 0.999)


def test_one_code_for_both_is_no_anomaly():
    X = make_images((4, 16, 16))
    detector = tiny(GANomaly).fit(X)
    net = detector.network_
    net.second_encoder = net.encoder
    net.decoder = nn.Identity()
    net.encoder.code, net.encoder.down = nn.Identity(), nn.Identity()
    assert_allclose(detector.score_samples(X), 0, atol=1e-7)
    assert_allclose(detector.anomaly_map(X), 0, atol=1e-6)


def test_score_and_map():
    X = make_images((5, 20, 14))
    detector = tiny(GANomaly).fit(X)
    with torch.no_grad():
        x = torch.from_numpy(X[:, None] / 255).float() * 2 - 1
        z = detector.network_.encoder(x)
        again = detector.network_.second_encoder(detector.network_.decoder(z))
    assert_allclose(-detector.score_samples(X), (z - again).square().mean(1), rtol=1e-4)
    error = abs((detector.reconstruct(X) - X) / 255 * 2)
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-5)
    assert_allclose(detector.score_components(X)["residual"], error.mean((1, 2)), rtol=1e-4)


@pytest.mark.parametrize("name", ["reconstruction_weight", "code_weight", "adversarial_weight"])
def test_bad_parameters(name):
    with pytest.raises(ValueError, match=f"'{name}' parameter of GANomaly must be a float"):
        tiny(GANomaly, **{name: -1.0}).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    """Its residual and map; the distance of the codes tells little of foreign patches (AUROC .6)."""
    small = {"hidden_size": 128, "width": 8, "batch_size": 16, "random_state": 0}
    check_learns(GANomaly(max_epochs=20, lr=1e-3, **small), component="residual")

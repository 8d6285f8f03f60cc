import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from steps import assert_descends
from torch import nn

from skanomaly import ConstrainedAE
from skanomaly._random import seeded
from skanomaly.detectors.constrained_ae import Constrained
from skanomaly.networks.autoencoder import ConvAutoEncoder
from skanomaly.testing import make_images, tiny


class Half(nn.Module):
    """Codes are the images, reconstructions half of them."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Identity(), nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.decoder.weight, 0.5)


def test_the_loss():
    net, x = Half(), torch.rand(4, 1, 8, 8)
    training = Constrained(net, stage="s", constraint_weight=3.0)
    error, constraint = training.terms(net, x)
    assert_allclose(error.detach(), (0.5 * x).square().mean(), rtol=1e-6)
    assert_allclose(constraint.detach(), (0.5 * x).square().mean(), rtol=1e-6)
    assert_allclose(training.validate(net, x).detach(), 4 * (0.5 * x).square().mean(), rtol=1e-6)
    detector = tiny(ConstrainedAE, constraint_weight=3.0).fit(make_images())
    (epoch,) = detector.history_["reconstruction"]
    expected = epoch["reconstruction_loss"] + 3 * epoch["constraint_loss"]
    assert_allclose(epoch["train_loss"], expected, rtol=1e-5)


def test_a_step_goes_down_the_gradient_of_both():
    with seeded(0):
        net = ConvAutoEncoder((1, 16, 16), 2, hidden_size=16, width=2, n_levels=2)
        x = torch.rand(8, 1, 16, 16)

    def loss(net, x):
        z = net.encoder(x)
        y = net.decoder(z)
        return (y - x).square().mean() + 3 * (z - net.encoder(y)).square().mean()

    assert_descends(Constrained, net, x, loss, {"encoder", "decoder"}, constraint_weight=3.0)


def test_the_constraint_draws_codes_together():
    X = make_images((32, 16, 16))
    free, held = (
        tiny(ConstrainedAE, constraint_weight=weight, max_epochs=30, width=8, lr=0.01).fit(X).history_
        for weight in (0.0, 1.0)
    )
    last = [history["reconstruction"][-1]["constraint_loss"] for history in (free, held)]
    assert last[1] < 0.3 * last[0]


def test_the_score_is_the_mean_squared_error():
    X = make_images((5, 20, 14))
    detector = tiny(ConstrainedAE).fit(X)
    error = ((detector.reconstruct(X) - X) / 255 * 2) ** 2
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-6)
    assert_allclose(-detector.score_samples(X), error.mean((1, 2)), rtol=1e-4)


def test_bad_parameters():
    with pytest.raises(ValueError, match="'constraint_weight' parameter of ConstrainedAE must be a float"):
        tiny(ConstrainedAE, constraint_weight=-1.0).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(ConstrainedAE(hidden_size=128, width=8, batch_size=16, max_epochs=25, random_state=0))

from functools import partial

import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from steps import watch_stages
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as kl_of

from skanomaly import VAE
from skanomaly._losses import absolute_error, squared_error
from skanomaly._random import seeded
from skanomaly.networks.autoencoder import VariationalAutoEncoder
from skanomaly.testing import make_images, tiny
from skanomaly.training import Variational

GRADIENTS = "elbo_gradient", "residual_gradient", "kl_gradient"


def test_the_loss_is_the_error_and_the_weighted_divergence():
    detector = tiny(VAE, kl_weight=3.0).fit(make_images())
    (epoch,) = detector.history_["reconstruction"]
    assert_allclose(epoch["train_loss"], epoch["reconstruction_loss"] + 3 * epoch["kl_loss"], rtol=1e-5)


def test_a_step_draws_codes_and_has_the_closed_form_of_the_divergence():
    with seeded(0):
        net = VariationalAutoEncoder((1, 16, 16), 2, hidden_size=16, width=2, n_levels=2)
        x = torch.rand(4, 1, 16, 16)
    training = Variational(
        net, stage="s", error=squared_error, kl_weight=0.5, optimizer=torch.optim.SGD, lr=0
    )
    training.initialize()
    training.totals_, training.batch_size_ = {}, 4
    net.train()
    found = []
    for seed in (0, 1):
        training.totals_ = {}
        with seeded(seed):
            training.step(net, x)
        found.append({name: float(total / count) for name, (total, count) in training.totals_.items()})
    mean, log_variance = net.posterior(x)
    expected = kl_of(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).mean()
    assert_allclose(found[0]["kl_loss"], expected.detach(), rtol=1e-4)
    with seeded(0):
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    assert_allclose(
        found[0]["reconstruction_loss"], (net.decoder(code) - x).square().mean().detach(), rtol=1e-4
    )
    assert found[0]["reconstruction_loss"] != found[1]["reconstruction_loss"], "codes are drawn"
    assert training.validate(net.eval(), x) == training.validate(net, x), "but not to validate"


def test_one_step_moves_encoder_and_decoder():
    X = make_images()
    one, two = (tiny(VAE, max_epochs=epochs).fit(X).network_ for epochs in (1, 2))
    for (name, a), b in zip(one.named_parameters(), two.parameters()):
        assert not torch.equal(a, b), name


def test_without_the_divergence_codes_shrink_to_points():
    X = make_images((32, 16, 16))
    options = {"max_epochs": 60, "width": 8, "latent_size": 8, "lr": 0.01}
    free, drawn = (tiny(VAE, kl_weight=weight, **options).fit(X) for weight in (0.0, 10.0))
    deviations = [
        (0.5 * detector.network_.posterior(torch.from_numpy(X[:, None] / 255).float() * 2 - 1)[1])
        .exp()
        .mean()
        for detector in (free, drawn)
    ]
    assert deviations[0] < 0.7
    assert_allclose(deviations[1].detach(), 1, atol=0.1)
    assert drawn.score_components(X)["kl"].mean() < 0.1 * free.score_components(X)["kl"].mean()


def test_scores_by_hand():
    X = make_images((5, 20, 14))
    detector = tiny(VAE).fit(X)
    error = ((detector.reconstruct(X) - X) / 255 * 2) ** 2
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-6)
    components = detector.score_components(X)
    assert_allclose(components["residual"], error.mean((1, 2)), rtol=1e-4)
    kl = detector.set_params(score_component="kl_gradient").anomaly_map(X)
    both = detector.set_params(score_component="combination").anomaly_map(X)
    assert_allclose(both, error * kl, rtol=1e-3, atol=1e-8)
    for name in (*GRADIENTS, "combination", "residual"):
        scores = detector.set_params(score_component=name).score_samples(X)
        assert_allclose(-scores, components[name], rtol=1e-6)
        assert_allclose(-scores, detector.anomaly_map(X).mean((1, 2)), rtol=1e-5)


def negative_elbo_by_hand(net, x, *, weight, power=2):
    mean, log_variance = net.encoder(x).chunk(2, dim=1)
    divergence = kl_of(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).mean(1)
    return (net.decoder(mean) - x).abs().pow(power).mean((1, 2, 3)) + weight * divergence


def test_validated_by_the_bound():
    with seeded(0):
        net = VariationalAutoEncoder((1, 16, 16), 2, hidden_size=16, width=2, n_levels=2).eval()
        x = torch.rand(4, 1, 16, 16)
    training = Variational(net, stage="s", error=absolute_error, kl_weight=0.5)
    with torch.no_grad():
        expected = negative_elbo_by_hand(net, x, weight=0.5, power=1).mean()
        assert_allclose(training.validate(net, x), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["l2", "l1"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_finite_differences(name, loss):
    detector = tiny(VAE, kl_weight=0.3, loss=loss, score_component=name).fit(make_images())
    net = detector.network_.double().eval()
    with seeded(0):
        x = torch.rand(2, 1, 16, 16, dtype=torch.double) * 2 - 1
    found, step, slopes = detector._judge(net, x).map, 1e-6, []

    def value(x):
        bound = partial(negative_elbo_by_hand, net, power=2 if loss == "l2" else 1)
        if name != "kl_gradient":
            return bound(x, weight=0.3 if name == "elbo_gradient" else 0)
        return bound(x, weight=1) - bound(x, weight=0)

    for image, row, column in [(i, j, k) for i in (0, 1) for j in (1, 6, 11, 15) for k in (0, 7, 12)]:
        moved = torch.zeros_like(x)
        moved[image, 0, row, column] = step
        with torch.no_grad():
            slopes.append((value(x + moved) - value(x - moved))[image] / (2 * step))
        assert_allclose(found[image, row, column], slopes[-1].abs(), rtol=1e-4, atol=1e-8)
    assert min(slopes) < 0 < max(slopes)
    alone = detector._judge(net, x[1:]).map
    assert_allclose(found[1:], alone, rtol=1e-9, err_msg="no share of the batch")


def test_absolute_errors(monkeypatch):
    X, errors = make_images((5, 20, 14)), []

    def look(stage, training, network, images, *, error, **options):
        errors.append(error)

    watch_stages(monkeypatch, VAE, look)
    detector = tiny(VAE, loss="l1").fit(X)
    assert errors == [absolute_error]
    error = abs((detector.reconstruct(X) - X) / 255 * 2)
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-5)
    assert_allclose(-detector.score_samples(X), error.mean((1, 2)), rtol=1e-4)


def test_log_variances_stay_within_bounds():
    class Extreme(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 2.0, 99.0, -99.0]]).expand(len(x), 4)

    net = VariationalAutoEncoder((1, 16, 16), 2, hidden_size=16, width=2, n_levels=2)
    net.encoder = Extreme()
    mean, log_variance = net.posterior(torch.zeros(3, 1, 16, 16))
    assert mean.tolist() == [[1.0, 2.0]] * 3
    assert log_variance.tolist() == [[10.0, -10.0]] * 3


@pytest.mark.parametrize("parameters", [{"loss": "l1"}, {"bottleneck": "spatial"}])
def test_options_learn(parameters):
    X = make_images((32, 16, 16))
    detector = tiny(VAE, max_epochs=40, width=8, latent_size=8, lr=0.01, **parameters).fit(X)
    losses = detector.history_["reconstruction"][:, "reconstruction_loss"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kl_weight": -1.0}, "'kl_weight' parameter of VAE must be a float"),
        ({"score_component": "kl"}, "'score_component' parameter of VAE must be a str among"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(VAE, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(VAE(hidden_size=128, width=8, batch_size=16, max_epochs=25, random_state=0))

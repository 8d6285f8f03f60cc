"""SSLAnoVAE: its losses against independent computations, who moves, the slow target, and that it learns."""

from functools import partial

import numpy as np
import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from steps import watch_stages
from torch.distributions import Normal, kl_divergence

from skanomaly import SSLAnoVAE
from skanomaly._random import seeded
from skanomaly.datasets import load_chest_xray
from skanomaly.detectors.ssl_anovae import EndToEnd, SSLAnoVAENetwork
from skanomaly.networks import gaussian
from skanomaly.testing import make_images, tiny
from skanomaly.training import SelfSupervised, byol_loss
from skanomaly.transforms import Flip, preset

WEIGHTS = {"ssl": 1.0, "reconstruction": 1.0, "prior": 1.0, "adversarial": 1.0}
PARTS = [
    "image_encoder",
    "image_code",
    "ssl_encoder",
    "ssl_code",
    "projector",
    "predictor",
    "target",
    "decoder",
    "discriminator",
]


def network(fusion="concatenation", *, predictor=True):
    with seeded(0):
        return SSLAnoVAENetwork(
            (1, 16, 16), 3, fusion=fusion, predictor=predictor, hidden_size=8, width=2, n_levels=None
        )


def images(n=8):
    with seeded(1):
        return torch.rand(n, 1, 16, 16)


def parameters(part):
    return [value.clone() for value in part.parameters()]


def step(training, network, *, lr=1e-3, momentum=0.9, views="oct", **options):
    """One step; returns what it recorded, and the parts that moved."""
    training = training(
        network,
        views=views and preset(views),
        momentum=momentum,
        stage="test",
        max_epochs=1,
        batch_size=8,
        verbose=0,
        lr=lr,
        optimizer=torch.optim.SGD,
        **options,
    )
    training.initialize()
    training.totals_, training.batch_size_ = {}, 8
    before = {part: parameters(getattr(network, part)) for part in PARTS}
    network.train()
    with seeded(0):
        training.step(network, images())
    moved = {
        part
        for part in PARTS
        if any(not torch.equal(a, b) for a, b in zip(before[part], getattr(network, part).parameters()))
    }
    return {name: float(total / n) for name, (total, n) in training.totals_.items()}, moved


end_to_end = partial(EndToEnd, weights=WEIGHTS, prior_weights=(1.0, 1.0))


def test_who_moves():
    _, moved = step(end_to_end, network())
    assert moved == set(PARTS)
    _, moved = step(SelfSupervised, network())
    assert moved == {"ssl_encoder", "projector", "predictor", "target"}
    _, moved = step(end_to_end, network(), views=None)
    assert moved == {"image_encoder", "image_code", "ssl_code", "decoder", "discriminator"}


def test_the_target_follows_after_the_step():
    """With a rate of 0 the online branch stands still, and the target goes to it by 1 - tau, exactly."""
    for training in (end_to_end, SelfSupervised):
        net = network()
        with torch.no_grad():
            for value in net.target.parameters():
                value.add_(torch.randn_like(value))
        before = parameters(net.target)
        online = [*net.ssl_encoder.parameters(), *net.projector.parameters()]
        still = [value.clone() for value in online]
        step(training, net, lr=0.0, momentum=0.75)
        for old, now, to, same in zip(before, net.target.parameters(), online, still):
            assert torch.equal(to, same)
            assert_allclose(now, 0.75 * old + 0.25 * to.detach(), atol=1e-6)
            assert now.grad is None
        net = network()
        step(training, net, lr=0.1, momentum=0.0)
        for now, to in zip(
            net.target.parameters(), [*net.ssl_encoder.parameters(), *net.projector.parameters()]
        ):
            assert_allclose(now, to.detach(), atol=1e-6, err_msg="it follows the weights after the step")


@pytest.mark.parametrize("predictor", [True, False])
def test_the_loss_of_the_views(predictor):
    net = network(predictor=predictor).eval()
    first, second = images(4), images(4).flip(3)

    def online(x):
        return net.predictor(net.projector(net.ssl_encoder(x)))

    expected = 0.0
    for a, b in ((first, second), (second, first)):
        p, t = online(a).detach().numpy(), net.target(b).detach().numpy()
        p, t = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (p, t))
        expected += ((p - t) ** 2).sum(1).mean()
    loss = byol_loss(net, first, second)
    assert_allclose(loss.detach(), expected, rtol=1e-5)
    loss.backward()
    assert all(value.grad is None for value in net.target.parameters())
    assert all(value.grad is not None for value in net.ssl_encoder.down.parameters())
    with torch.no_grad():  # only directions count
        for layer in (net.target[1][-1], (net.predictor if predictor else net.projector)[-1]):
            layer.weight.mul_(7)
            layer.bias.mul_(7)
    assert_allclose(byol_loss(net, first, second).detach(), expected, rtol=1e-4)


def test_statistics_are_those_of_images():
    """The second encoder judges images, and views of them leave no trace in what it judges them with."""
    net, expected = network(), network().train()
    expected.ssl_encoder(images())
    step(end_to_end, net)
    for (name, found), value in zip(net.ssl_encoder.named_buffers(), expected.ssl_encoder.buffers()):
        assert_allclose(found, value, atol=1e-6, err_msg=name)
    net = network()
    step(SelfSupervised, net)
    tracked = [value for name, value in net.ssl_encoder.named_buffers() if "num_batches" in name]
    assert tracked == [2] * len(tracked), "of both views, where it learns from them alone"


def test_without_their_weight_there_are_no_views():
    _, moved = step(partial(end_to_end, weights=WEIGHTS | {"ssl": 0.0}), network())
    assert moved == {"image_encoder", "image_code", "ssl_encoder", "ssl_code", "decoder", "discriminator"}

    def fail(x):
        raise AssertionError("a view was made")

    X = make_images()
    fitted = [tiny(SSLAnoVAE, ssl_weight=0.0, transforms=each).fit(X) for each in (fail, "oct")]
    assert np.array_equal(*(detector.score_samples(X) for detector in fitted))
    assert "ssl_loss" not in fitted[0].history_["end_to_end"][0]


def test_the_divergence_is_that_of_torch():
    with seeded(0):
        mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0, 1)).mean(1)
    assert_allclose(gaussian.kl_divergence(mean, log_variance), expected, rtol=1e-5)
    assert gaussian.kl_divergence(torch.zeros(1, 4), torch.zeros(1, 4)) == 0
    with seeded(0):
        drawn = gaussian.draw(torch.full((40_000, 1), 3.0), torch.full((40_000, 1), np.log(4.0)))
    assert_allclose([drawn.mean(), drawn.std()], [3, 2], rtol=0.02)


def test_what_a_step_records():
    weights = {"ssl": 2.0, "reconstruction": 3.0, "prior": 5.0, "adversarial": 7.0}
    net, x = network().eval(), images()
    losses, _ = step(partial(EndToEnd, weights=weights, prior_weights=(1.0, 0.5)), network())
    total = sum(weight * losses[f"{name}_loss"] for name, weight in weights.items())
    assert_allclose(losses["train_loss"], total, rtol=1e-5)
    assert set(losses) == set(EndToEnd.losses)
    (image, ssl) = network().train().posteriors(x)
    prior = gaussian.kl_divergence(*image).mean() + 0.5 * gaussian.kl_divergence(*ssl).mean()
    assert_allclose(losses["prior_loss"], prior.detach(), rtol=1e-4)
    assert net.posteriors(x)[0][0].shape == (8, 3)
    net = network().train()
    with seeded(0):  # of the step
        y = net.decode([gaussian.draw(*posterior) for posterior in net.posteriors(x)])
    assert_allclose(losses["reconstruction_loss"], (x - y).abs().mean().detach(), rtol=1e-5)
    mean = net.decode([mean for mean, _ in net.posteriors(x)])
    assert not torch.allclose(y, mean, atol=1e-4), "codes are drawn"


def test_the_discriminator_teaches_the_decoder():
    weights = dict.fromkeys(WEIGHTS, 0.0) | {"adversarial": 1.0}
    _, moved = step(partial(EndToEnd, weights=weights, prior_weights=(1.0, 1.0)), network(), views=None)
    assert "decoder" in moved


def test_variances_are_bounded():
    net = network()
    with torch.no_grad():
        net.image_code.bias.fill_(1e6)
    assert net.posteriors(images())[0][1].max() == 10


@pytest.mark.parametrize(("fusion", "n"), [("concatenation", 6), ("sum", 3), ("features", 6)])
def test_fusion(fusion, n):
    net = network(fusion).eval()
    x, means = images(), [mean for mean, _ in net.posteriors(images())]
    z = sum(means) if fusion == "sum" else torch.cat(means, 1)
    assert z.shape == (8, n)
    assert_allclose(net(x).detach(), net.decoder(z).detach(), atol=1e-6)
    with torch.no_grad():
        before = net(x)
        for value in net.ssl_encoder.parameters():
            value.zero_()
        assert not torch.equal(before, net(x)), "both encoders speak"


def test_views_are_fresh_and_different():
    """Each batch gets new views, each image its own, and first and second are drawn apart."""
    seen = []

    def spy(x):
        seen.append(Flip()(x))
        return seen[-1]

    tiny(SSLAnoVAE, transforms=spy, max_epochs=2).fit(make_images((8, 16, 16)))
    assert len(seen) == 4
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_choices_of_transforms(monkeypatch):
    def names(X, transforms):
        got = []

        def look(stage, training, network, images, *, views, **options):
            got.append(views)

        with monkeypatch.context() as patch:
            watch_stages(patch, SSLAnoVAE, look)
            tiny(SSLAnoVAE, transforms=transforms).fit(X)
        return got[0]

    grey = make_images()
    assert names(grey, "auto") == preset("oct")
    assert names(np.stack([grey] * 3, -1), "auto") == preset("cfp")
    assert names(np.stack([grey] * 2, -1), "auto") == preset("color")
    assert names(grey, "byol") == preset("byol")
    first, second = Flip(), Flip(0.1)
    assert names(grey, (first, second)) == (first, second)
    assert names(grey, first) == (first, first)
    assert all(torch.equal(view(images()), images()) for view in names(grey, None))


def test_pretraining_has_two_stages():
    detector = tiny(SSLAnoVAE, ssl_training="pretrain", ssl_epochs=3, max_epochs=2).fit(make_images())
    assert {name: len(history) for name, history in detector.history_.items()} == {
        "ssl": 3,
        "reconstruction": 2,
    }


def test_what_was_pretrained_stays():
    nets = [
        tiny(SSLAnoVAE, ssl_training="pretrain", ssl_epochs=2, max_epochs=n).fit(make_images()).network_
        for n in (1, 3)
    ]
    first, second = (net.ssl_encoder.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(*(net.image_encoder.down[0].weight for net in nets))


def test_components():
    X = make_images()
    detector = tiny(SSLAnoVAE).fit(X)
    maps, components = detector.anomaly_map(X), detector.score_components(X)
    assert_allclose(components["residual"], maps.mean((1, 2)), rtol=1e-5)
    assert_allclose(components["residual"], -detector.score_samples(X))
    assert_allclose(maps, np.abs(X / 255 - detector.reconstruct(X) / 255), atol=1e-5)
    assert set(components) == {"residual", "image_divergence", "ssl_divergence"}
    assert set(tiny(SSLAnoVAE, fusion="features").fit(X).score_components(X)) == {
        "residual",
        "image_divergence",
    }


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"transforms": "retina"}, "'transforms' parameter of SSLAnoVAE"),
        ({"transforms": (Flip(),)}, "transforms must be a preset's name, one callable or a tuple of two"),
        ({"fusion": "product"}, "'fusion' parameter of SSLAnoVAE"),
        ({"momentum": 1.1}, "'momentum' parameter of SSLAnoVAE"),
        ({"ssl_weight": -1}, "'ssl_weight' parameter of SSLAnoVAE"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(SSLAnoVAE, **parameters).fit(make_images())


def test_transforms_of_ones_own():
    X = make_images()
    with pytest.raises(
        ValueError,
        match="a transform must give a tensor .* got .3, 1, 16, 16.",
    ):
        tiny(SSLAnoVAE, transforms=lambda x: x[:3]).fit(X)
    with pytest.raises(ValueError, match="a transform must give a tensor .* got ndarray"):
        tiny(SSLAnoVAE, transforms=lambda x: x.numpy()).fit(X)
    in_place = tiny(SSLAnoVAE, transforms=lambda x: x.mul_(0.5)).fit(X)
    assert_allclose(
        in_place.score_samples(X), tiny(SSLAnoVAE, transforms=lambda x: x * 0.5).fit(X).score_samples(X)
    )


def test_colour_transforms_refuse_two_channels():
    with pytest.raises(ValueError, match="needs images of 1 or 3 channels, grey or RGB, got 2; leave it out"):
        tiny(SSLAnoVAE, transforms="structure").fit(np.stack([make_images()] * 2, -1))


@pytest.mark.learning
@pytest.mark.parametrize(("ssl_training", "max_epochs"), [("end_to_end", 12), ("pretrain", 16)])
def test_learns_what_a_chest_looks_like(ssl_training, max_epochs):
    small = {"hidden_size": 128, "width": 8, "batch_size": 16, "lr": 2e-3, "random_state": 0}
    check_learns(SSLAnoVAE(ssl_training=ssl_training, max_epochs=max_epochs, ssl_epochs=4, **small))


@pytest.mark.learning
def test_codes_do_not_collapse():
    """Predictor and slow target keep the projections of different images apart."""
    X = load_chest_xray(subset="train").images[:128, ::4, ::4]
    detector = SSLAnoVAE(hidden_size=64, width=8, max_epochs=12, batch_size=32, random_state=0).fit(X)
    net = detector.network_
    with torch.no_grad():
        projected = net.projector(net.ssl_encoder(torch.from_numpy(X[:, None] / 255).float()))
    directions = torch.nn.functional.normalize(projected, dim=1)
    assert directions.std(0).mean() > 0.2 / directions.shape[1] ** 0.5, "of directions anywhere it is 1"

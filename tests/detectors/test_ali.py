"""ALI: the game of pairs, the score's parts, and that it learns."""

import numpy as np
import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose

from skanomaly import ALI
from skanomaly._random import seeded
from skanomaly.detectors.ali import ALINetwork, PairAdversarial
from skanomaly.testing import make_images, tiny

PARTS = "generator", "encoder", "discriminator"


def network(stochastic=True):
    with seeded(0):
        return ALINetwork((1, 16, 16), 3, stochastic=stochastic, width=2, n_levels=None)


def run_step(network, lr=1e-3):
    """What each `move` of a step moves, and its loss."""
    found = []

    class Spy(PairAdversarial):
        def move(self, optimizer, **loss):
            before = {part: [v.clone() for v in getattr(network, part).parameters()] for part in PARTS}
            super().move(optimizer, **loss)
            after = {part: list(getattr(network, part).parameters()) for part in PARTS}
            moved = {p for p in PARTS if any(not torch.equal(a, b) for a, b in zip(before[p], after[p]))}
            found.append((optimizer, moved, *(value.item() for value in loss.values())))

    training = Spy(network, stage="test", lr=lr, max_epochs=1, batch_size=8, verbose=0)
    training.initialize()
    training.totals_, training.batch_size_ = {}, 8
    with seeded(0):
        training.step(network, torch.rand(8, 1, 16, 16))
    return found


def test_generator_and_encoder_minimise_the_loss_of_exchanged_pairs():
    """Its gradient does not vanish while the discriminator is sure, as that of the loss turned round does."""
    net = network()
    *_, (_, _, found) = run_step(net, lr=1e-12)
    with seeded(0), torch.no_grad():
        x, z = torch.rand(8, 1, 16, 16), torch.randn(8, 3)
        y, code = net.generator(z), net.encoder(x)
        made, encoded = net.discriminator(y, z), net.discriminator(x, code)
    expected = torch.log1p(torch.exp(-made)).mean() + torch.log1p(torch.exp(encoded)).mean()
    assert_allclose(found, expected, rtol=1e-5)


def test_who_moves():
    moved = [(optimizer, parts) for optimizer, parts, _ in run_step(network())]
    assert moved == [
        ("optimizer_discriminator", {"discriminator"}),
        ("optimizer", {"generator", "encoder"}),
    ]


def test_an_undecided_discriminator():
    net = network()
    torch.nn.init.zeros_(net.discriminator.value.weight), torch.nn.init.zeros_(net.discriminator.value.bias)
    (_, _, loss), _ = run_step(net)
    assert_allclose(loss, 2 * np.log(2), rtol=1e-6)


def test_the_discriminator_sees_both_of_a_pair():
    net = network().eval()
    x, z = torch.rand(2, 8, 1, 16, 16), torch.randn(2, 8, 3)
    first = net.discriminator(x[0], z[0])
    assert not torch.equal(first, net.discriminator(x[1], z[0]))
    assert not torch.equal(first, net.discriminator(x[0], z[1]))


def test_a_stochastic_encoder_draws_in_training_only():
    x = torch.rand(8, 1, 16, 16)
    net = network(stochastic=True)
    assert not torch.equal(net.encoder(x), net.encoder(x))
    net.eval()
    assert torch.equal(net.encoder(x), net.encoder(x))
    fixed = network(stochastic=False)
    assert torch.equal(fixed.encoder(x), fixed.encoder(x))


def test_the_score_is_the_weighted_sum_of_its_parts():
    X = make_images()
    for discrimination in "feature_matching", "cross_entropy":
        detector = tiny(ALI, discrimination=discrimination, discrimination_weight=0.3).fit(X)
        parts = detector.score_components(X)
        assert_allclose(
            -detector.score_samples(X), 0.7 * parts["residual_sum"] + 0.3 * parts[discrimination], rtol=1e-5
        )
    scaled, rebuilt = (images.astype(float) / 127.5 - 1 for images in (X, detector.reconstruct(X)))
    assert_allclose(parts["residual_sum"], np.abs(scaled - rebuilt).sum((1, 2)), rtol=1e-4)
    assert_allclose(detector.anomaly_map(X), np.abs(scaled - rebuilt), atol=1e-4)
    net = detector.network_
    with torch.no_grad():
        x, y = (torch.from_numpy(images[:, None].astype("float32")) for images in (scaled, rebuilt))
        z = net.encoder(x)
        difference = (net.discriminator.features(x, z) - net.discriminator.features(y, z)).abs().sum(1)
        entropy = -torch.log(torch.sigmoid(net.discriminator(y, z)))
    assert_allclose(parts["feature_matching"], difference, rtol=1e-3, atol=1e-6)
    assert_allclose(parts["cross_entropy"], entropy, rtol=1e-3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"discrimination": "fm"}, "'discrimination' parameter of ALI"),
        ({"discrimination_weight": 2}, "'discrimination_weight' parameter of ALI"),
        ({"stochastic": "yes"}, "'stochastic' parameter of ALI"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(ALI, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    """Large patches: smaller ones it tells apart after longer trainings only (AUROC .6 to .75 here)."""
    small = {"width": 16, "latent_size": 8, "n_levels": 2, "batch_size": 16, "random_state": 0}
    check_learns(ALI(max_epochs=20, lr=1e-3, **small), share=5 / 8, map_ratio=1.2)

"""AdversarialAutoEncoder: both opponents, who moves, the constraint, and that it learns."""

import numpy as np
import pytest
import torch
from foreign import check_learns
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from skanomaly import AdversarialAutoEncoder
from skanomaly._losses import gradient_penalty
from skanomaly._random import seeded
from skanomaly.datasets import load_chest_xray
from skanomaly.detectors.adversarial_autoencoder import (
    AdversarialAutoEncoderNetwork,
    ImageAdversarial,
    LatentAdversarial,
    reconstruction_loss,
)
from skanomaly.testing import make_images, tiny

PARTS = "encoder", "decoder", "opponent"
STEP = {"stage": "test", "max_epochs": 1, "batch_size": 8, "lr": 1e-3, "verbose": 0}


def network(adversary, latent_size=3):
    with seeded(0):
        return AdversarialAutoEncoderNetwork(
            (1, 16, 16), latent_size, adversary=adversary, hidden_size=8, width=2, n_levels=None
        )


def moves_of(training, network, **options):
    """Which parts each `move` of one step moves."""
    found = []

    class Spy(training):
        def move(self, optimizer, **loss):
            before = {part: [v.clone() for v in getattr(network, part).parameters()] for part in PARTS}
            super().move(optimizer, **loss)
            after = {part: list(getattr(network, part).parameters()) for part in PARTS}
            moved = {p for p in PARTS if any(not torch.equal(a, b) for a, b in zip(before[p], after[p]))}
            found.append((optimizer, moved))

    options = {"adversarial_weight": 1.0, "constraint_weight": 0.0} | STEP | options
    training = Spy(network, **options)
    training.initialize()
    training.totals_, training.batch_size_ = {}, 8
    with seeded(0):
        training.step(network, torch.rand(8, 1, 16, 16))
    return found


def test_who_moves():
    assert moves_of(LatentAdversarial, network("latent"), penalty_weight=10.0, n_critic=2) == [
        ("optimizer_opponent", {"opponent"}),
        ("optimizer_opponent", {"opponent"}),
        ("optimizer", {"encoder", "decoder"}),
    ]
    assert moves_of(ImageAdversarial, network("image")) == [
        ("optimizer_opponent", {"opponent"}),
        ("optimizer", {"encoder", "decoder"}),
    ]


@given(
    adversary=st.sampled_from(["latent", "image"]),
    weights=st.tuples(st.floats(1e-4, 1e2), st.floats(1e-4, 1e2)),
    seed=st.integers(0, 2**31),
)
def test_the_judgement_counts_by_its_weight(adversary, weights, seed):
    """In the loss that moves encoder and decoder: an optimiser of its own would not know its scale."""
    kind = {"penalty_weight": 10.0, "n_critic": 1} if adversary == "latent" else {}
    training = LatentAdversarial if adversary == "latent" else ImageAdversarial
    judgement = "encoder_loss" if adversary == "latent" else "generator_loss"
    losses = []
    for weight in weights:

        class Spy(training):
            def move(self, optimizer, **loss):
                super().move(optimizer, **loss)
                if optimizer == "optimizer":
                    losses.append(loss["train_loss"].item())

        one = Spy(network(adversary), adversarial_weight=weight, constraint_weight=0.0, **kind, **STEP)
        one.initialize()
        one.totals_, one.batch_size_ = {}, 8
        with seeded(seed):
            one.step(one.module_, torch.rand(8, 1, 16, 16))
    judged = one.totals_[judgement][0].item() / 8
    assert_allclose(losses[1] - losses[0], (weights[1] - weights[0]) * judged, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("adversary", "weight"), [("latent", 0.01), ("image", 0.001)])
def test_each_opponent_has_its_default_weight(adversary, weight):
    """Ten or a hundred times as much would drown the squared error."""
    X, losses = make_images(), []
    for chosen in None, weight:
        detector = tiny(AdversarialAutoEncoder, adversary=adversary, adversarial_weight=chosen).fit(X)
        losses.append(detector.history_["adversarial"][:, "train_loss"])
    assert losses[0] == losses[1]


def test_the_penalty_of_codes_is_taken_between_them():
    """Not beyond: a critic that is steep outside only is not penalised more than a flat one."""
    draws, codes = torch.zeros(500, 2), torch.ones(500, 2)
    places = []

    def critic(z):
        places.append(z.detach())
        return z.sum(1)

    with seeded(0):
        penalty = gradient_penalty(critic, draws, codes)
    assert_allclose(penalty, (np.sqrt(2) - 1) ** 2, rtol=1e-5)
    (between,) = places
    assert 0 <= between.min() < 0.02
    assert 0.98 < between.max() <= 1
    assert torch.equal(between[:, 0], between[:, 1]), "one place per code"


def test_a_critic_sees_no_difference_between_equal_distributions():
    """Its estimate of the Wasserstein distance stays near 0, and grows with a shift."""
    critic = network("latent").opponent
    with seeded(0):
        z = torch.randn(4000, 3)
        apart = abs(critic(z[:2000]).mean() - critic(z[2000:]).mean())
        shifted = abs(critic(z[:2000] + 5).mean() - critic(z[2000:]).mean())
    assert apart < 0.05 < shifted


def test_the_constraint_draws_codes_together():
    net = network("latent").eval()
    x = torch.rand(8, 1, 16, 16)
    y, z, plain = reconstruction_loss(net, x, 0.0)
    assert_allclose(plain.detach(), (x - y).square().mean().detach(), rtol=1e-6)
    *_, constrained = reconstruction_loss(net, x, 2.0)
    expected = plain + 2.0 * (z - net.encoder(y)).square().mean()
    assert_allclose(constrained.detach(), expected.detach(), rtol=1e-6)
    X = make_images()
    free, bound = (
        tiny(AdversarialAutoEncoder, constrained=constrained).fit(X) for constrained in (False, True)
    )
    assert free.score_samples(X)[0] != bound.score_samples(X)[0]


@pytest.mark.learning
def test_the_larger_the_weight_the_more_codes_spread_as_the_prior_does():
    """The point of the critic: without it, codes keep to a narrow place."""
    X = load_chest_xray(subset="train").images[:128, ::4, ::4]

    def spread(weight):
        small = {"latent_size": 4, "hidden_size": 32, "width": 4, "batch_size": 16, "random_state": 0}
        detector = AdversarialAutoEncoder(adversarial_weight=weight, max_epochs=10, **small).fit(X)
        with torch.no_grad():
            z = detector.network_.encoder(torch.from_numpy(X[:, None] / 127.5 - 1).float())
        return z.std(0).mean().item()

    narrow, hardly, well = (spread(weight) for weight in (0.0, 0.003, 0.03))
    assert narrow < hardly < narrow + 0.1 < 0.85 < well < 1.15


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"adversary": "both"}, "'adversary' parameter of AdversarialAutoEncoder"),
        ({"n_critic": 0}, "'n_critic' parameter of AdversarialAutoEncoder"),
        ({"adversarial_weight": -1}, "'adversarial_weight' parameter of AdversarialAutoEncoder"),
        ({"constrained": 2}, "'constrained' parameter of AdversarialAutoEncoder"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(AdversarialAutoEncoder, **parameters).fit(make_images())


@pytest.mark.learning
@pytest.mark.parametrize("adversary", ["latent", "image"])
def test_learns_what_a_chest_looks_like(adversary):
    small = {"hidden_size": 128, "width": 8, "batch_size": 16, "random_state": 0}
    check_learns(AdversarialAutoEncoder(adversary=adversary, max_epochs=25, **small))

import numpy as np
import pytest
import torch
from foreign import check_learns
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from skanomaly import MemAE
from skanomaly._random import seeded
from skanomaly.testing import make_images, tiny
from skanomaly.training._memory import entropy


def test_the_score_is_the_mean_squared_error_of_what_it_reconstructs():
    X = make_images((5, 20, 14))
    detector = tiny(MemAE).fit(X)
    error = ((detector.reconstruct(X) - X) / 255 * 2) ** 2
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-6)
    assert_allclose(-detector.score_samples(X), error.mean((1, 2)), rtol=1e-4)


def test_entropy_of_an_address():
    even, sharp = torch.full((2, 8), 1 / 8), torch.eye(8)[:2]
    assert_allclose(entropy(even), np.log(8), rtol=1e-6)
    assert_allclose(entropy(sharp), 0, atol=1e-6)
    assert_allclose(entropy(torch.stack([even, sharp])), np.log(8) / 2, rtol=1e-6)


def test_one_step_moves_encoder_memory_and_decoder():
    X = make_images()
    one, two = (tiny(MemAE, max_epochs=epochs).fit(X).network_ for epochs in (1, 2))
    for (name, a), b in zip(one.named_parameters(), two.parameters()):
        assert not torch.equal(a, b), name


def test_the_loss_is_the_error_and_the_weighted_entropy():
    detector = tiny(MemAE, entropy_weight=3.0).fit(make_images())
    (epoch,) = detector.history_["reconstruction"]
    assert_allclose(epoch["train_loss"], epoch["reconstruction_loss"] + 3 * epoch["entropy"], rtol=1e-5)


@given(
    n_slots=st.integers(2, 60),
    latent_size=st.integers(2, 16),
    scale=st.floats(1e-3, 1e3),
    similarity=st.sampled_from(["cosine", "dot"]),
    seed=st.integers(0, 2**31),
)
def test_some_items_are_dropped_by_default(n_slots, latent_size, scale, similarity, seed):
    """Whatever the codes and items are, if weights differ at all."""
    detector = MemAE(n_slots=n_slots, latent_size=latent_size, similarity=similarity, hidden_size=2, width=1)
    with seeded(seed):
        memory = detector._build((1, 8, 8)).memory
        _, weights = memory(scale * torch.randn(20, latent_size))
    assert ((weights == 0).any(1) & (weights > 0).any(1)).all()
    assert_allclose(weights.sum(1).detach(), 1, rtol=1e-5)


@pytest.mark.parametrize("bottleneck", ["dense", "spatial"])
def test_entropy_makes_addresses_sharp(bottleneck):
    X = make_images((32, 16, 16))
    options = {"bottleneck": bottleneck, "similarity": "dot", "max_epochs": 40, "lr": 0.01, "n_slots": 6}
    free, drawn = (
        tiny(MemAE, entropy_weight=weight, **options).fit(X).history_["reconstruction"][-1]["entropy"]
        for weight in (0.0, 1.0)
    )
    assert drawn < 0.5 * free


def test_a_memory_of_one_item_reconstructs_one_image():
    X = make_images((6, 16, 16))
    y = tiny(MemAE, n_slots=1).fit(X).reconstruct(X)
    assert_allclose(y, np.broadcast_to(y[:1], y.shape), atol=1e-4)


@pytest.mark.parametrize(
    "parameters", [{"similarity": "dot"}, {"bottleneck": "spatial"}, {"shrinkage_threshold": 0.2}], ids=str
)
def test_options_are_heard(parameters):
    X = make_images()
    plain, other = (tiny(MemAE, **options).fit(X).reconstruct(X) for options in ({}, parameters))
    assert not np.array_equal(plain, other)


def test_held_out_images_count_as_training_ones():
    detector = tiny(MemAE, entropy_weight=0.0, validation_fraction=0.5, lr=1e-12).fit(make_images())
    other = tiny(MemAE, entropy_weight=100.0, validation_fraction=0.5, lr=1e-12).fit(make_images())
    losses = [d.history_["reconstruction"][-1]["valid_loss"] for d in (detector, other)]
    assert losses[1] > losses[0] + 10


@pytest.mark.parametrize("parameters", [{"similarity": "dot"}, {"bottleneck": "spatial"}])
def test_options_learn(parameters):
    X = make_images((32, 16, 16))
    detector = tiny(MemAE, max_epochs=40, width=8, latent_size=8, lr=0.01, **parameters).fit(X)
    losses = detector.history_["reconstruction"][:, "reconstruction_loss"]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_slots": 0}, "'n_slots' parameter of MemAE must be an int in the range"),
        ({"shrinkage_threshold": 1.0}, "'shrinkage_threshold' parameter of MemAE must be a float"),
        ({"similarity": "l2"}, "'similarity' parameter of MemAE must be a str among"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(MemAE, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(MemAE(hidden_size=128, width=8, batch_size=16, max_epochs=25, random_state=0))

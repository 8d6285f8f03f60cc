import numpy as np
import pytest
import torch
from foreign import check_learns
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from steps import assert_descends, run_step

from skanomaly import VQVAE
from skanomaly._random import seeded
from skanomaly.detectors.vqvae import QuantisedTraining
from skanomaly.networks import quantiser as module
from skanomaly.networks.quantiser import Quantiser, TwoLevelAutoEncoder
from skanomaly.testing import make_images, tiny


def small(shape=(1, 16, 16), n=6):
    """Network and images, the same each time."""
    with seeded(0):
        network = TwoLevelAutoEncoder(shape, 3, n_codes=5, width=4, hidden_size=2)
        return network, torch.rand(n, *shape)


def drawn(seed, n_codes=7, size=4, n=3, side=5, **options):
    """Quantiser in float64, and features for it."""
    with seeded(seed):
        quantiser = Quantiser(n_codes, size, **options).double()
        return quantiser, torch.randn(n, size, side, side, dtype=torch.float64)


def test_the_score_is_the_mean_squared_error_of_what_it_reconstructs():
    X = make_images((5, 20, 14))
    detector = tiny(VQVAE).fit(X)
    error = ((detector.reconstruct(X) - X) / 255 * 2) ** 2
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-6)
    assert_allclose(-detector.score_samples(X), error.mean((1, 2)), rtol=1e-4)
    assert_allclose(detector.score_components(X)["residual"], -detector.score_samples(X))


def test_commitment_by_hand():
    """Each place of a level stands for a square of pixels; 20 x 14 pixels are padded to 24 x 16."""
    X = make_images((5, 20, 14))
    detector = tiny(VQVAE, n_codes=4, score_component="commitment").fit(X)
    network = detector.network_
    _, levels = network.quantise(detector._open(X)[:])
    expected = 0
    for codes, (z, _, _), pixels in zip((network.top_codes, network.bottom_codes), levels, (8, 4)):
        z = z.detach().numpy()
        away = ((z[:, None] - codes.codes.numpy()[None, :, :, None, None]) ** 2).sum(2).min(1)
        expected = expected + (away / z.shape[1]).repeat(pixels, 1).repeat(pixels, 2)[:, :20, :14]
    assert_allclose(detector.anomaly_map(X), expected, rtol=1e-4, atol=1e-6)
    assert_allclose(-detector.score_samples(X), expected.mean((1, 2)), rtol=1e-4)
    assert_allclose(detector.score_components(X)["commitment"], expected.mean((1, 2)), rtol=1e-4)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5))
def test_each_feature_becomes_the_nearest_code(seed, n_codes, size):
    quantiser, z = drawn(seed, n_codes, size)
    quantised, difference, index = quantiser(z)
    for i, row, column in np.ndindex(*index.shape):
        feature = z[i, :, row, column]
        distances = [float((feature - code).square().sum()) for code in quantiser.codes]
        assert distances[index[i, row, column]] <= min(distances) + 1e-9
        chosen = quantiser.codes[index[i, row, column]]
        assert_allclose(quantised[i, :, row, column], chosen, atol=1e-12)
        assert_allclose(difference[i, :, row, column], (feature - chosen) ** 2, atol=1e-12)


def test_chunks_change_nothing(monkeypatch):
    quantiser, z = drawn(0)
    whole = quantiser.nearest(z)
    monkeypatch.setattr(module, "CHUNK", 4)
    assert_array_equal(quantiser.nearest(z), whole)


def test_gradients_go_straight_through_and_the_commitment_draws_features_only():
    quantiser, z = drawn(0)
    z.requires_grad_()
    quantised, difference, index = quantiser(z)
    upstream = torch.randn_like(z)
    (gradient,) = torch.autograd.grad(quantised, z, upstream, retain_graph=True)
    assert_array_equal(gradient, upstream)
    (gradient,) = torch.autograd.grad(difference.sum(), z)
    chosen = quantiser.codes[index].movedim(-1, 1)
    assert_allclose(gradient, 2 * (z.detach() - chosen), atol=1e-12)
    assert not list(quantiser.parameters())


def test_the_codebook_is_a_moving_average_as_in_a_loop():
    decay, n_codes = 0.8, 7
    quantiser, _ = drawn(0, n_codes, decay=decay, least_use=0.0)
    with seeded(1):
        quantiser.counts.uniform_(1, 3)
        quantiser.sums.normal_()
        batches = torch.randn(4, 3, 4, 5, 5, dtype=torch.float64)
    counts, sums = quantiser.counts.numpy().copy(), quantiser.sums.numpy().copy()
    for z in batches:
        index = quantiser.nearest(z)
        quantiser.update(z, index)
        chosen = [[] for _ in range(n_codes)]
        for i, row, column in np.ndindex(*index.shape):
            chosen[index[i, row, column]].append(z[i, :, row, column].numpy())
        for k, members in enumerate(chosen):
            counts[k] = decay * counts[k] + (1 - decay) * len(members)
            sums[k] = decay * sums[k] + (1 - decay) * np.sum([np.zeros(4), *members], 0)
        total = counts.sum()
        for k in range(n_codes):
            smooth = (counts[k] + 1e-5) / (total + n_codes * 1e-5) * total
            assert_allclose(quantiser.codes[k], sums[k] / smooth, rtol=1e-9)
        assert_allclose(quantiser.counts, counts, rtol=1e-9)


def test_a_code_moves_to_the_mean_of_the_features_that_always_choose_it():
    quantiser, z = drawn(0, n_codes=1, decay=0.5)
    for _ in range(60):
        quantiser.update(z, quantiser.nearest(z))
    assert_allclose(quantiser.codes[0], z.mean((0, 2, 3)), rtol=1e-6)


def test_unused_codes_become_features():
    quantiser, z = drawn(0, n_codes=6, decay=0.9)
    quantiser.codes[2:] += 1000  # out of reach
    quantiser.counts.fill_(1.0)
    quantiser.sums.copy_(quantiser.codes)
    with seeded(0):
        waited = 0
        while (quantiser.codes[2:] > 100).any():
            index = quantiser.nearest(z)
            assert (index < 2).all()
            quantiser.update(z, index)
            waited += 1
    # A count of 1 needs seven steps to fall below 0.5.
    assert waited == 7
    places = z.movedim(1, -1).reshape(-1, 1, 4)
    assert_allclose((places - quantiser.codes[2:]).square().sum(-1).min(0).values, 0, atol=1e-6)
    assert_allclose(quantiser.counts[2:], 1)
    assert len(quantiser.nearest(z).unique()) == 6


def test_the_first_update_takes_codes_from_the_features():
    """Random codes may all be too far from small features to be chosen."""
    quantiser, z = drawn(0, n_codes=20)
    with seeded(0):
        quantiser.update(1e-3 * z, quantiser.nearest(1e-3 * z))
    assert (quantiser.codes.abs() < 0.01).all()
    assert len(quantiser.nearest(1e-3 * z).unique()) > 10


def test_a_step_moves_the_network_down_the_loss_and_codes_by_averages():
    network, x = small()
    codes = [network.top_codes.codes.clone(), network.bottom_codes.codes.clone()]

    def loss(network, x):
        y, levels = network.quantise(x)
        return (y - x).square().mean() + 0.5 * sum(difference.mean() for _, difference, _ in levels)

    parts = QuantisedTraining.moves["optimizer"]
    assert_descends(QuantisedTraining, network, x, loss, parts, commitment_weight=0.5)
    assert not torch.equal(network.top_codes.codes, codes[0])
    assert not torch.equal(network.bottom_codes.codes, codes[1])
    _, moved = run_step(QuantisedTraining, network, x, commitment_weight=0.5)
    assert moved == set(parts) == {name for name, part in network.named_children() if list(part.parameters())}


def test_codes_are_updated_in_training_only():
    X = make_images()
    detector = tiny(VQVAE).fit(X)
    before = {name: value.clone() for name, value in detector.network_.state_dict().items()}
    detector.score_samples(X)
    detector.reconstruct(X)
    assert all(torch.equal(value, before[name]) for name, value in detector.network_.state_dict().items())


def test_the_decoder_sees_nothing_but_codes():
    """Features that choose the same codes give the same image."""
    network, x = small()
    network.eval()
    with torch.no_grad():
        for quantiser in (network.top_codes, network.bottom_codes):
            quantiser.codes[1:] = 1e6  # only one of them is near
        y = network(x)
    assert_allclose(y, y[:1].expand_as(y), atol=1e-5)


@given(height=st.integers(1, 30), width=st.integers(8, 30), n_channels=st.integers(1, 4))
def test_images_of_any_size(height, width, n_channels):
    network, x = small((n_channels, height, width), n=2)
    with torch.no_grad():
        y, levels = network.quantise(x)
    assert y.shape == x.shape
    top, bottom = (index.shape[1:] for *_, index in levels)
    for side, coarse, fine in zip((height, width), top, bottom):
        halvings = min(3, int(np.log2(side)))
        assert coarse == -(-side // 2**halvings)
        assert fine == coarse * (2 if halvings == 3 else 1)


def test_the_loss_is_the_error_and_the_weighted_commitment():
    options = {"validation_fraction": 0.5, "lr": 1e-12, "decay": 1 - 1e-12}
    detector = tiny(VQVAE, commitment_weight=3.0, **options).fit(make_images())
    (epoch,) = detector.history_["reconstruction"]
    expected = epoch["reconstruction_loss"] + 3 * epoch["commitment_loss"]
    assert_allclose(epoch["train_loss"], expected, rtol=1e-5)
    other = tiny(VQVAE, commitment_weight=0.0, **options).fit(make_images())
    assert epoch["valid_loss"] > other.history_["reconstruction"][-1]["valid_loss"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_codes": 0}, "'n_codes' parameter of VQVAE must be an int"),
        ({"decay": 1.0}, "'decay' parameter of VQVAE must be a float"),
        ({"commitment_weight": -1.0}, "'commitment_weight' parameter of VQVAE must be a float"),
        ({"score_component": "codes"}, "'score_component' parameter of VQVAE must be a str among"),
        ({"width": 0}, "'width' parameter of VQVAE must be an int"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(VQVAE, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    detector = VQVAE(width=8, n_codes=64, batch_size=16, lr=2e-3, max_epochs=18, random_state=0)
    trained, *_ = check_learns(detector, beats_the_mean=True)
    # Codes do not collapse: many of them are in use.
    for codes in (trained.network_.top_codes, trained.network_.bottom_codes):
        assert (codes.counts > 1).sum() >= 16

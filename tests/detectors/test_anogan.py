"""AnoGAN: the search against independent minimisers, who moves, the sums, and that it learns."""

import numpy as np
import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linprog

from skanomaly import AnoGAN
from skanomaly._random import seeded
from skanomaly._search import search_codes
from skanomaly.detectors.anogan import AnoGANNetwork
from skanomaly.testing import make_images, tiny
from skanomaly.training import Adversarial
from skanomaly.training._adversarial import discriminator_loss, generator_loss

PARTS = "generator", "discriminator"


def network(latent_size=6, n_restarts=1):
    with seeded(0):
        return AnoGANNetwork((1, 16, 16), latent_size, width=2, n_levels=None, n_restarts=n_restarts)


def snapshot(network):
    return {part: [v.clone() for v in getattr(network, part).parameters()] for part in PARTS}


def moved(network, before):
    after = snapshot(network)
    return {p for p in PARTS if any(not torch.equal(a, b) for a, b in zip(before[p], after[p]))}


def linear(n_pixels=20, latent_size=3, n_images=4):
    """A linear generator, images it cannot quite make, and codes to start with."""
    rng = torch.Generator().manual_seed(0)
    W, x, start = (
        torch.randn(*size, generator=rng)
        for size in ((n_pixels, latent_size), (n_images, n_pixels), (1, latent_size))
    )
    return W, x, start


def test_a_search_in_a_linear_generator_finds_the_least_squares():
    W, x, start = linear()
    codes = search_codes(
        lambda z: z @ W.T, lambda y: (x - y).square().sum(1), start, len(x), n_search=3000, lr=0.02
    )
    expected = np.linalg.lstsq(W.numpy(), x.numpy().T, rcond=None)[0].T
    assert_allclose(codes, expected, atol=1e-3)


def test_a_search_in_a_linear_generator_finds_the_least_absolute_deviations():
    """The residual loss of the paper; its least value is that of a linear program."""
    W, x, start = linear()

    def loss(y):
        return (x - y).abs().sum(1)

    codes = search_codes(lambda z: z @ W.T, loss, start, len(x), n_search=4000, lr=2e-3)
    n, k = W.shape
    for image, found in zip(x.numpy(), loss(codes @ W.T)):
        # Unknowns: the code, free, and the deviation of each pixel, at least + and - its difference.
        A = np.block([[W.numpy(), -np.eye(n)], [-W.numpy(), -np.eye(n)]])
        cost = np.r_[np.zeros(k), np.ones(n)]
        best = linprog(cost, A, np.r_[image, -image], bounds=[(None, None)] * k + [(0, None)] * n)
        assert best.fun <= found + 1e-4
        assert_allclose(found, best.fun, rtol=5e-3)


def test_the_best_restart_is_kept_for_each_image():
    """Two valleys: which one a start leads to, and which one is deeper, differ between images."""
    x = torch.tensor([[-1.0], [1.0]])

    def loss(z):
        return (z.square() - 1).square().sum(1) + 0.1 * (x - z).square().sum(1)

    def search(*starts):
        return search_codes(lambda z: z, loss, torch.tensor(starts), 2, n_search=300, lr=0.02)

    assert_allclose(search([0.5])[:, 0], [1, 1], atol=0.1)
    assert_allclose(search([-0.5])[:, 0], [-1, -1], atol=0.1)
    for starts in ([0.5], [-0.5]), ([-0.5], [0.5]):
        assert_allclose(search(*starts), x, atol=1e-2)


def test_codes_stay_within_the_prior():
    W, x, start = linear()
    codes = search_codes(
        lambda z: z @ W.T, lambda y: (100 * x - y).abs().sum(1), start, len(x), n_search=50, lr=1.0, bound=1.0
    )
    assert codes.abs().max() == 1
    draws = network(1000).draw_codes(50)
    assert_allclose([draws.mean(), draws.var()], [0, 1 / 3], atol=0.02)
    assert draws.abs().max() <= 1


def test_an_image_of_the_generator_at_the_code_of_the_start():
    """Nothing is left, and the search stays where it is."""
    detector = tiny(AnoGAN).fit(make_images())
    with torch.no_grad():
        x = detector.network_.generator(detector.network_.starts).expand(4, -1, -1, -1)
        y, residual, discrimination = detector._search(detector.network_, x)
    assert_array_equal(y, x)
    assert_array_equal(residual, np.zeros(4))
    assert_array_equal(discrimination, np.zeros(4))


def test_a_batch_is_searched_as_if_one_by_one():
    X = make_images((37, 8, 8))
    detector = tiny(AnoGAN, n_search=10, n_restarts=2, search_lr=0.1).fit(X)
    scores = detector.score_samples(X)
    assert_array_equal([detector.score_samples(x[None])[0] for x in X], scores)
    assert_array_equal(detector.score_samples(X[::-1])[::-1], scores)


def test_the_score_is_the_weighted_sum_of_its_sums():
    X = make_images()
    detector = tiny(AnoGAN, discrimination_weight=0.3, n_search=10).fit(X)
    parts = detector.score_components(X)
    expected = 0.7 * parts["residual_sum"] + 0.3 * parts["discrimination"]
    assert_allclose(-detector.score_samples(X), expected, rtol=1e-5)
    scaled, rebuilt = (images.astype(float) / 127.5 - 1 for images in (X, detector.reconstruct(X)))
    assert_allclose(parts["residual_sum"], np.abs(scaled - rebuilt).sum((1, 2)), rtol=1e-4)
    assert_allclose(detector.anomaly_map(X), np.abs(scaled - rebuilt), atol=1e-4)
    assert_allclose(parts["residual_sum"], detector.anomaly_map(X).sum((1, 2)), rtol=1e-4)
    net = detector.network_
    with torch.no_grad():
        x, y = (torch.from_numpy(images[:, None].astype("float32")) for images in (scaled, rebuilt))
        difference = net.discriminator.features(x) - net.discriminator.features(y)
        probability = {
            name: torch.sigmoid(net.discriminator(images)).numpy()
            for name, images in {"x": x, "y": y}.items()
        }
    assert_allclose(parts["discrimination"], difference.abs().sum(1), rtol=1e-3)
    yeh = -np.log(probability["y"])
    assert_allclose(parts["reference"], 0.7 * parts["residual_sum"] + 0.3 * yeh, rtol=1e-3)
    assert_allclose(parts["discriminator"], -np.log(probability["x"]), rtol=1e-3)


def test_a_search_moves_nothing_but_codes():
    X = make_images()
    detector = tiny(AnoGAN).fit(X)
    detector.network_.zero_grad()
    before = {key: value.clone() for key, value in detector.network_.state_dict().items()}
    first = detector.score_samples(X)
    after = detector.network_.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(p.grad is None for p in detector.network_.parameters())
    # More steps leave less.
    assert -detector.set_params(n_search=200).score_samples(X).mean() < -first.mean()


def test_losses_of_an_undecided_discriminator():
    undecided = torch.zeros(5)
    assert_allclose(discriminator_loss(undecided, undecided), 2 * np.log(2), rtol=1e-6)
    assert_allclose(generator_loss(undecided), np.log(2), rtol=1e-6)
    real, fake = torch.randn(50), torch.randn(50)
    expected = -torch.log(torch.sigmoid(real)).mean() - torch.log(1 - torch.sigmoid(fake)).mean()
    assert_allclose(discriminator_loss(real, fake), expected, rtol=1e-5)


def test_who_moves():
    net, x, at = network(), torch.rand(8, 1, 16, 16), []
    training = Adversarial(net, stage="test", lr=1e-3, max_epochs=1, batch_size=8, verbose=0)
    training.initialize()
    training.totals_, training.batch_size_ = {}, 8

    class Spy(Adversarial):
        def move(self, optimizer, **loss):
            before = snapshot(net)
            super().move(optimizer, **loss)
            at.append((optimizer, moved(net, before)))

    training.__class__ = Spy
    training.step(net, x)
    assert at == [("optimizer_discriminator", {"discriminator"}), ("optimizer", {"generator"})]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_search": 0}, "'n_search' parameter of AnoGAN"),
        ({"n_restarts": 0}, "'n_restarts' parameter of AnoGAN"),
        ({"search_lr": 0}, "'search_lr' parameter of AnoGAN"),
        ({"discrimination_weight": 1.1}, "'discrimination_weight' parameter of AnoGAN"),
        ({"n_levels": 5}, "at most 4 for images of 16 x 16.*got 5; lower n_levels"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(AnoGAN, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    small = {"width": 8, "latent_size": 64, "n_levels": 2, "batch_size": 16, "random_state": 0}
    check_learns(AnoGAN(max_epochs=25, lr=1e-3, n_search=30, search_lr=0.1, **small), map_ratio=1.2)

"""Densities of features, against scipy and scikit-learn in float64."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import ndimage
from scipy.linalg import fractional_matrix_power
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.covariance import OAS, LedoitWolf, empirical_covariance, shrunk_covariance
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from skanomaly._random import seeded
from skanomaly.networks import density, unlabelled
from skanomaly.networks.density import (
    Moments,
    PositionGaussians,
    ShrunkGaussian,
    deviations,
    enlarged,
    fine,
    joined,
    map_scores,
    smallest,
)

#: Numbers of images and features: more images, as many, and fewer.
SIZES = [(40, 7), (8, 8), (9, 8), (12, 30), (2, 5)]


def features(n, d, seed=0):
    """Correlated float32 features of different scales, far from zero as logarithms are."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.geomspace(0.01, 10, d) - 7
    return x.astype(np.float32)


def drawn(n, d, n_new=6):
    """Training features, and new ones of the same distribution."""
    return np.split(features(n + n_new, d), [n])


def fitted(x, shrinkage="oas", **options):
    gaussian = ShrunkGaussian(x.shape[1], len(x), **options)
    gaussian.fit_rows(torch.from_numpy(x), shrinkage)
    return gaussian


def covariance_of(x, shrinkage):
    """Mean, deviation, and covariance of standardised features by scikit-learn, in float64."""
    x = x.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0)
    z = (x - mean) / deviation
    if shrinkage == "oas":
        covariance = OAS().fit(z).covariance_
    elif shrinkage == "ledoit_wolf":
        covariance = LedoitWolf().fit(z).covariance_
    else:
        covariance = shrunk_covariance(empirical_covariance(z), shrinkage)
    return mean, deviation, covariance


class TestShrunkGaussian:
    @pytest.mark.parametrize(("n", "d"), SIZES)
    @pytest.mark.parametrize("shrinkage", ["oas", "ledoit_wolf", 0.3, 1e-3, 1.0])
    def test_squared_mahalanobis_distance(self, n, d, shrinkage):
        x, new = drawn(n, d)
        mean, deviation, covariance = covariance_of(x, shrinkage)
        if np.linalg.cond(covariance) > 1e12:  # two images without shrinkage: see below
            assert (n, shrinkage) == (2, "ledoit_wolf")
            return
        inverse = np.linalg.inv(covariance)
        expected = [mahalanobis((row - mean) / deviation, np.zeros(d), inverse) ** 2 for row in new]
        assert_allclose(fitted(x, shrinkage)(torch.from_numpy(new)), expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize(("n", "d"), SIZES)
    @pytest.mark.parametrize("shrinkage", ["oas", 0.3])
    def test_fitted_vectors_are_judged_by_the_others(self, n, d, shrinkage):
        """By mean and covariance of the others, by definition, if they leave 4 directions of the features."""
        x, _ = drawn(n, d)
        mean, deviation, covariance = covariance_of(x, shrinkage)
        gaussian, z = fitted(x, shrinkage), (x - mean) / deviation
        rho, floor = float(gaussian.shrinkage), float(gaussian.floor)
        expected = []
        for i in range(n):
            others, matrix = np.delete(z, i, 0), covariance
            row = z[i]
            if n + 3 <= d:
                row = row - others.mean(0)
                centred = others - others.mean(0)
                matrix = (1 - rho) * centred.T @ centred / (n - 1) + floor * n / (n - 1) * np.eye(d)
            expected.append(row @ np.linalg.solve(matrix, row))
        assert_allclose(gaussian(torch.from_numpy(x)), expected, rtol=2e-3)

    @pytest.mark.parametrize(("n", "d"), SIZES)
    def test_shrinkage_is_that_of_scikit_learn(self, n, d):
        x, _ = drawn(n, d)
        z = (x - x.mean(0, dtype=float)) / x.std(0, dtype=float)
        for name, estimator in ("oas", OAS()), ("ledoit_wolf", LedoitWolf()):
            expected = max(estimator.fit(z).shrinkage_, density.LEAST_SHRINKAGE)
            assert_allclose(float(fitted(x, name).shrinkage), expected, rtol=1e-4)

    @pytest.mark.parametrize(("n", "d"), [(5, 200), (20, 200), (60, 700)])
    def test_the_least_shrinkage_leaves_digits_to_training_images(self, n, d):
        """Left out of their own Gaussian, they are divided by a difference of nearly equal numbers."""
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, d) + 5
        gaussian = density.ShrunkGaussian(d, n)
        gaussian.fit_rows(x, density.LEAST_SHRINKAGE)
        found = gaussian(x)
        assert_allclose(found, gaussian.double()(x.double()), rtol=0.02)

    def test_many_features_in_float32(self):
        """A few hundred images with features of a low rank: the distance still has three digits."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(70, 5)) @ rng.normal(size=(5, 600)) + 0.01 * rng.normal(size=(70, 600)) + 3
        x, new = np.split(x.astype(np.float32), [60])
        for shrinkage in ("oas", density.LEAST_SHRINKAGE):
            mean, deviation, covariance = covariance_of(x, shrinkage)
            z = (new - mean) / deviation
            expected = (z * np.linalg.solve(covariance, z.T).T).sum(1)
            assert_allclose(fitted(x, shrinkage)(torch.from_numpy(new)), expected, rtol=1e-3)

    @pytest.mark.parametrize(("n", "d"), SIZES)
    @pytest.mark.parametrize("k", [1, 2])
    def test_nearest_is_that_of_whitened_features(self, n, d, k):
        x, new = drawn(n, d)
        mean, deviation, covariance = covariance_of(x, "oas")
        half = fractional_matrix_power(covariance, -0.25)
        bank, queries = ((rows - mean) / deviation @ half for rows in (x, new))
        gaussian = fitted(x, remembers=True)
        k = min(k, n - 1)
        expected = np.sort(cdist(queries, bank), axis=1)[:, :k].mean(1)
        assert_allclose(gaussian.nearest(torch.from_numpy(new), k), expected, rtol=1e-3)
        # Of remembered ones, all but each itself.
        expected = np.sort(cdist(bank, bank), axis=1)[:, 1 : k + 1].mean(1)
        assert_allclose(gaussian.nearest(torch.from_numpy(x), k), expected, rtol=1e-3)

    def test_more_neighbours_than_images(self):
        x, new = drawn(4, 3)
        gaussian, new = fitted(x, remembers=True), torch.from_numpy(new)
        assert torch.equal(gaussian.nearest(new, 99), gaussian.nearest(new, 3))

    def test_the_mean_is_at_no_distance(self):
        x, _ = drawn(12, 30)
        assert_allclose(fitted(x)(torch.from_numpy(x.mean(0, keepdims=True))), 0, atol=1e-3)

    def test_constant_features(self):
        """They change the shrinkage only, and a new value of one is far."""
        x, new = drawn(20, 6)
        dust = np.float32(5) + np.float32(5e-7) * (np.arange(20) % 2)[:, None]
        for constant in (np.full((20, 9), 5, np.float32), np.repeat(dust, 9, 1).astype(np.float32)):
            wide = fitted(np.concatenate([x, constant], 1), 0.1)
            same = np.concatenate([new, np.full((len(new), 9), 5, np.float32)], 1)
            mean, deviation, covariance = covariance_of(x, 0.0)
            covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / 15 * np.eye(6)
            z = (new - mean) / deviation
            expected = (z * np.linalg.solve(covariance, z.T).T).sum(1)
            assert_allclose(wide(torch.from_numpy(same)), expected, rtol=2e-3)
            same[:, -1] += 0.1
            assert (wide(torch.from_numpy(same)).numpy() > 10 * expected).all()

    @pytest.mark.parametrize("shrinkage", ["oas", "ledoit_wolf", 0.5])
    def test_equal_images(self, shrinkage):
        x = np.repeat(features(1, 6), 5, 0)
        gaussian = fitted(x, shrinkage, remembers=True)
        for judge in (gaussian, lambda rows: gaussian.nearest(rows, 1)):
            assert_allclose(judge(torch.from_numpy(x)), 0, atol=1e-6)
            away = judge(torch.from_numpy(x + 1))
            assert away.isfinite().all()
            assert (away > 1).all()

    @pytest.mark.parametrize("x", [features(2, 5), features(2, 1), np.repeat(features(2, 3), 6, 0)])
    def test_without_shrinkage_distances_are_finite(self, x):
        """Ledoit and Wolf find none where two images are all there is."""
        gaussian = fitted(x, "ledoit_wolf")
        assert gaussian(torch.from_numpy(x)).isfinite().all()
        assert gaussian(torch.from_numpy(x + 1)).isfinite().all()

    @given(st.integers(0, 2**31), st.sampled_from(SIZES), st.sampled_from(["oas", "ledoit_wolf", 0.2]))
    def test_neither_scale_nor_order_matter(self, seed, size, shrinkage):
        rng = np.random.default_rng(seed)
        n, d = size
        assume(n > 2)
        x, new = np.split(rng.normal(size=(n + 4, d)).astype(np.float32), [n])
        expected = fitted(x, shrinkage, remembers=True)
        scale = 2.0 ** rng.integers(-3, 3, d).astype(np.float32)
        scaled = fitted(x * scale, shrinkage, remembers=True)
        shuffled = fitted(x[rng.permutation(n)], shrinkage, remembers=True)
        for other, rows in ((scaled, new * scale), (shuffled, new)):
            rows, plain = torch.from_numpy(rows), torch.from_numpy(new)
            assert_allclose(other(rows), expected(plain), rtol=1e-3)
            assert_allclose(other.nearest(rows, 2), expected.nearest(plain, 2), rtol=1e-3)


def test_deviations():
    """None is below a thousandth of the median of those that are more than rounding."""
    variance = torch.tensor([4.0, 1.0, 9.0, 1e-12, 0.0, 1e-16]).double()
    mean = torch.tensor([0.0, 100.0, 1.0, 0.0, 3.0, -1.0]).double()
    assert_allclose(deviations(variance, mean), [2, 1, 3, 1e-3, 1e-3, 1e-3])
    assert_allclose(deviations(torch.full((3,), 1e-16), torch.ones(3)), 1)
    assert_allclose(deviations(torch.zeros(3), torch.zeros(3)), 1)
    assert_allclose(deviations(torch.tensor([-1e-20, 4.0]), torch.zeros(2)), [2e-3, 2])


def test_moments_of_batches_are_those_of_all():
    x = features(30, 12).reshape(30, 3, 4)
    moments = Moments(3, 4)
    for rows in np.split(x, [10, 11]):
        moments.add(torch.from_numpy(rows))
    assert moments.count == 30
    assert_allclose(moments.mean(), x.mean(0, dtype=float), rtol=1e-12)
    for k, found in enumerate(moments.covariance()):
        assert_allclose(found, np.cov(x[:, k].T.astype(float), bias=True), rtol=1e-9, atol=1e-9)


def maps_of(n, n_channels, height, width, seed=0):
    """Smooth maps whose means and correlations differ from place to place."""
    x = features(n * height * width, n_channels, seed).reshape(n, height, width, n_channels)
    place = np.arange(height * width).reshape(height, width, 1)
    x = x * (1 + 0.2 * place) + place
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32)


def of_positions(maps, n_components, reduction="pca", regularization=0.01, seed=0):
    module = PositionGaussians(maps.shape[1], n_components, maps.shape[2:])
    with seeded(seed):
        module.fit(torch.from_numpy(maps).split(7), reduction, regularization)
    return module


def reduced(maps, directions=None, n_components=None, like=None):
    """Standardised features (n, positions, components) of maps in float64, by PCA of scikit-learn."""
    rows = maps.transpose(0, 2, 3, 1).astype(float)
    of = rows if like is None else like.transpose(0, 2, 3, 1).astype(float)
    flat = of.reshape(-1, maps.shape[1])
    mean, deviation = flat.mean(0), flat.std(0)
    if directions is None:
        directions = PCA(n_components).fit((flat - mean) / deviation).components_.T
    z = (rows - mean) / deviation @ directions
    return z.reshape(len(z), -1, directions.shape[1])


class TestPositionGaussians:
    @pytest.mark.parametrize(("n", "n_components"), [(30, 4), (5, 6), (30, 99)])
    @pytest.mark.parametrize("regularization", [0.01, 1.0, "oas"])
    @pytest.mark.parametrize("reduction", ["pca", "random"])
    def test_mahalanobis_distance_at_each_position(self, n, n_components, regularization, reduction):
        maps, new = np.split(maps_of(n + 3, 6, 2, 3), [n])
        module = of_positions(maps, n_components, reduction, regularization)
        n_components = min(n_components, 6)
        directions = None
        if reduction == "random":
            chosen = module.projection.abs().argmax(0)
            assert len(set(chosen.tolist())) == n_components
            directions = np.eye(6)[:, chosen]
        x = reduced(maps, directions, n_components)
        found = module(torch.from_numpy(new)).flatten(1)
        for place, queries in enumerate(reduced(new, directions, n_components, maps).swapaxes(0, 1)):
            here = x[:, place]
            if regularization == "oas":
                covariance = OAS().fit(here).covariance_
            else:
                covariance = np.cov(here.T, bias=True) + regularization * np.eye(n_components)
            inverse = np.linalg.inv(covariance)
            expected = [mahalanobis(query, here.mean(0), inverse) for query in queries]
            assert_allclose(found[:, place], expected, rtol=1e-3)

    def test_the_mean_is_at_no_distance(self):
        maps = maps_of(20, 5, 3, 2)
        found = of_positions(maps, 3)(torch.from_numpy(maps.mean(0, keepdims=True)))
        assert found.shape == (1, 3, 2)
        assert_allclose(found, 0, atol=2e-3)

    @pytest.mark.parametrize("regularization", [1e-6, "oas"])
    def test_images_that_are_equal_somewhere(self, regularization):
        maps = maps_of(8, 4, 2, 2)
        maps[:, :, 0, 0] = maps[0, :, 0, 0]
        module = of_positions(maps, 4, regularization=regularization)
        found = module(torch.from_numpy(maps))
        assert found.isfinite().all()
        assert_allclose(found[:, 0, 0], 0, atol=0.05)

    def test_constant_channels_change_nothing(self):
        maps = maps_of(20, 3, 2, 2)
        dust = 7 * (1 + 1e-7 * np.random.default_rng(0).random((20, 5, 2, 2)))
        wide = np.concatenate([maps, dust.astype(np.float32)], 1)
        expected = of_positions(maps, 3)(torch.from_numpy(maps))
        assert_allclose(of_positions(wide, 8)(torch.from_numpy(wide)), expected, rtol=2e-2)

    def test_channels_are_drawn_of_very_many(self, monkeypatch):
        monkeypatch.setattr(density, "MOST_CHANNELS", 4)
        maps = maps_of(20, 9, 2, 2)
        module, other = (of_positions(maps, 99, seed=seed) for seed in (0, 1))
        assert module.projection.shape == (4, 4)
        assert sorted(set(module.chosen.tolist())) == module.chosen.tolist()
        assert module.chosen.tolist() != other.chosen.tolist()
        few = np.ascontiguousarray(maps[:, module.chosen])
        expected = of_positions(few, 99)(torch.from_numpy(few))
        assert_allclose(module(torch.from_numpy(maps)), expected, rtol=1e-3)

    @given(st.integers(0, 2**31), st.sampled_from([0.01, "oas"]))
    def test_neither_scale_nor_order_matter(self, seed, regularization):
        rng = np.random.default_rng(seed)
        maps, new = np.split(rng.normal(size=(16, 5, 2, 2)).astype(np.float32), [12])
        # All components: directions whose variances are close may swap.
        expected = of_positions(maps, 5, regularization=regularization)(torch.from_numpy(new))
        scale = 2.0 ** rng.integers(-3, 3, (5, 1, 1)).astype(np.float32)
        scaled = of_positions(maps * scale, 5, regularization=regularization)
        assert_allclose(scaled(torch.from_numpy(new * scale)), expected, rtol=1e-3)
        shuffled = of_positions(maps[rng.permutation(12)], 5, regularization=regularization)
        assert_allclose(shuffled(torch.from_numpy(new)), expected, rtol=1e-3)


def test_joined_maps_are_means_of_neighbours():
    fine_map, coarse = maps_of(2, 3, 6, 8), maps_of(2, 2, 3, 4, seed=1)
    found = joined([torch.from_numpy(fine_map), torch.from_numpy(coarse)], torch.square)
    assert found.shape == (2, 5, 3, 4)
    maps = np.concatenate([fine_map.reshape(2, 3, 3, 2, 4, 2).mean((3, 5)), coarse], axis=1)
    for i in range(3):
        for j in range(4):
            near = maps[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            assert_allclose(found[:, :, i, j], near.mean((2, 3)) ** 2, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.2])
def test_enlarged_maps(share):
    maps, size = np.random.default_rng(0).random((2, 3, 4)), (20, 17)
    expected = maps
    for axis, n in zip((1, 2), size):
        old = (np.arange(n) + 0.5) * maps.shape[axis] / n - 0.5
        at = np.arange(maps.shape[axis])
        expected = np.apply_along_axis(lambda line, old=old, at=at: np.interp(old, at, line), axis, expected)
    expected = ndimage.gaussian_filter(expected, (0, share * 20, share * 17), mode="nearest")
    assert_allclose(enlarged(torch.from_numpy(maps), size, share), expected, rtol=1e-6)


def test_scores_of_maps():
    maps = np.random.default_rng(0).random((3, 4, 5))
    found = map_scores(torch.from_numpy(maps), 0.25)
    flat = np.sort(maps.reshape(3, -1), axis=1)
    expected = {"mean": flat.mean(1), "max": flat[:, -1], "top": flat[:, -5:].mean(1)}
    assert found.keys() == expected.keys()
    for name, score in found.items():
        assert_allclose(score, expected[name], rtol=1e-12)
    assert_allclose(map_scores(torch.from_numpy(maps), 1e-9)["top"], flat[:, -1])


def test_fine_maps():
    shapes = [(16, 112, 112), (40, 28, 28), (112, 14, 14), (320, 7, 7)]
    assert fine(shapes, (224, 224)) == [0, 1, 2]
    assert fine(shapes[3:], (224, 224)) == [0]
    assert fine([(3, 1, 1), (3, 2, 1)], (40, 33)) == [1]
    assert fine([(3, 1, 1)], (1, 1)) == [0]
    assert smallest(shapes) == (7, 7)
    assert smallest([(3, 4, 4), (3, 2, 6)]) == (2, 6)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", 0.001, "oas"])
def test_two_vectors_are_far_from_each_other(shrinkage):
    """And not at a negative squared distance, by rounding."""
    rows = torch.from_numpy(features(2, 40))
    gaussian = ShrunkGaussian(40, 2)
    gaussian.fit_rows(rows, shrinkage)
    assert (gaussian(rows) > 0).all()


def patients(n, rng, *, per_patient=3, d=40, shift=0.0):
    """Vectors of n patients with `per_patient` images each, which are alike."""
    x = np.repeat(rng.normal(shift, size=(n, d)), per_patient, axis=0)
    return torch.from_numpy((x + rng.normal(size=x.shape) * 0.1).astype(np.float32))


def test_excess_is_twice_the_auroc_beyond_chance_and_its_standard_error(monkeypatch):
    rng = np.random.default_rng(0)
    normal, other = patients(60, rng, per_patient=1, d=5), patients(30, rng, per_patient=1, d=5, shift=0.7)
    monkeypatch.setattr(unlabelled, "_clusters", lambda rows: np.arange(len(rows)))
    area = 0
    for k in range(5):
        held_out = np.arange(60) % 5 == k
        train = normal[~held_out].double().numpy()
        mean, deviation = train.mean(0), train.std(0)
        inverse = np.linalg.inv(OAS(assume_centered=True).fit((train - mean) / deviation).covariance_)
        z = (np.concatenate([normal[held_out], other]) - mean) / deviation
        area += roc_auc_score(np.repeat([0, 1], [12, 30]), ((z @ inverse) * z).sum(1)) / 5
    expected = 2 * (area - np.sqrt(91 / (12 * 60 * 30))) - 1
    assert expected > 0.2
    assert_allclose(unlabelled.excess(normal, other, "oas"), expected, rtol=1e-6)


def test_excess_of_new_patients_is_zero(monkeypatch):
    """Images of one patient are more alike than those of two, which makes no patient anomalous."""
    rng = np.random.default_rng(0)
    normal, new = patients(100, rng), patients(60, rng, per_patient=1)
    assert unlabelled.excess(normal, new, "oas") == 0
    assert unlabelled.excess(normal, new + 1, "oas") > 0.4
    monkeypatch.setattr(unlabelled, "_clusters", lambda rows: np.arange(len(rows)))
    assert unlabelled.excess(normal, new, "oas") > 0.4


@pytest.mark.parametrize("n_others", [0, 1, 9])
def test_excess_of_few_or_equal_vectors_is_zero(n_others):
    few, equal = torch.randn(14, 3), torch.cat([torch.ones(20, 3), torch.randn(n_others, 3)])
    assert unlabelled.excess(few, few + 9, "oas") == unlabelled.excess(equal, equal, "oas") == 0


def test_excess_compares_no_more_vectors_than_it_can_cluster(monkeypatch):
    monkeypatch.setattr(unlabelled, "MOST", 50)
    rows = torch.randn(500, 3)
    chosen = rows[np.linspace(0, 499, 50).round().astype(int)]
    assert 0 < unlabelled.excess(rows, rows + 2, "oas") == unlabelled.excess(chosen, chosen + 2, "oas")

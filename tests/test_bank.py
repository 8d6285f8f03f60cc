"""The bank of features: what is selected, and what is nearest."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist

from skanomaly._random import seeded
from skanomaly.networks import bank
from skanomaly.networks.bank import FeatureBank, coreset


def vectors(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def radius(x, rows):
    """Farthest distance of any feature from the nearest of those selected."""
    return cdist(x, x[list(rows)]).min(1).max()


@given(st.integers(4, 9), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31), st.floats(0, 100))
def test_coreset_is_within_twice_the_best_radius(m, n, d, seed, offset):
    x = vectors(m, d, seed) + np.float32(offset)
    with seeded(seed):
        rows = coreset(torch.from_numpy(x), n).tolist()
    assert len(set(rows)) == n
    best = min(radius(x, chosen) for chosen in combinations(range(m), n))
    assert radius(x, rows) <= 2 * best * (1 + 1e-3) + 1e-3


def test_coreset_takes_the_farthest_each_time():
    x = np.float32([[0], [10], [4], [1], [9.5]])
    found = {tuple(coreset(torch.from_numpy(x), 3).tolist()) for _ in range(20)}
    assert found == {(0, 1, 2), (1, 0, 2), (2, 1, 0), (3, 1, 2), (4, 0, 2)}


def test_coreset_in_a_random_projection():
    """Of many features: groups that lie far apart are all found, whatever the projection."""
    centres = 10 * vectors(6, 300)
    x = np.repeat(centres, 5, 0) + 0.01 * vectors(30, 300, seed=1)
    for seed in range(3):
        with seeded(seed):
            rows = coreset(torch.from_numpy(x), 6)
        assert sorted(rows // 5) == list(range(6))


@pytest.mark.parametrize("d", [1, 100])
def test_no_row_is_selected_twice(d):
    for x in (np.ones((12, d), np.float32), np.repeat(vectors(3, d), 4, 0), 1e4 + vectors(12, d)):
        rows = coreset(torch.from_numpy(x.astype(np.float32)), 12)
        assert sorted(rows.tolist()) == list(range(12))


def filled(features):
    module = FeatureBank(*features.shape)
    module.features.copy_(torch.from_numpy(features))
    return module


def by_brute_force(x, features, k, counts=None):
    """Distances to the k nearest features that count, and their numbers."""
    distances = cdist(x.astype(float), features.astype(float))
    if counts is not None:
        distances = np.where(counts | ~counts.any(1, keepdims=True), distances, np.inf)
    rows = np.argsort(distances, axis=1, kind="stable")[:, : min(k, len(features))]
    found = np.take_along_axis(distances, rows, 1)
    lost = np.isinf(found)
    return np.where(lost, found[:, :1], found), np.where(lost, rows[:, :1], rows)


@given(
    st.integers(1, 12), st.integers(1, 30), st.integers(1, 40), st.integers(1, 99),
    st.sampled_from([None, 0.0, 0.1, 0.9]), st.integers(0, 2**31),
)  # fmt: skip
def test_nearest(m, n, k, chunk, share, seed):
    """As by brute force, whatever the size of a chunk, also if few features or none count."""
    rng = np.random.default_rng(seed)
    x, features = rng.normal(size=(m, 5)).astype(np.float32), rng.normal(size=(n, 5)).astype(np.float32)
    counts = None if share is None else rng.random((m, n)) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank, "CHUNK", chunk)
        of_part = None if counts is None else lambda part: torch.from_numpy(counts[:, part])
        distances, rows = filled(features).nearest(torch.from_numpy(x), k, of_part)
    expected, expected_rows = by_brute_force(x, features, k, counts)
    assert_allclose(distances, expected, rtol=1e-4, atol=1e-6)
    assert_array_equal(rows, expected_rows)


def test_a_remembered_feature_is_at_no_distance():
    """Also if features are long: products of them would cancel."""
    features = 100 + vectors(50, 20)
    distances, rows = filled(features).nearest(torch.from_numpy(features), 1)
    assert_array_equal(rows[:, 0], np.arange(50))
    assert_array_equal(distances, 0)


def test_features_are_scaled_by_mean_and_deviation():
    module, x = FeatureBank(3, 4), vectors(6, 4)
    module.mean.copy_(torch.arange(4.0))
    module.deviation.copy_(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert_allclose(module.scaled(torch.from_numpy(x)), (x - np.arange(4)) / [1, 2, 4, 8], rtol=1e-6)

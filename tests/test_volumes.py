"""Volumes of slices: pooling, order, thresholds, maps, labels, lazy X, and the checks that apply."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimators_unfitted,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
)

from skanomaly import AutoEncoder, FeatureGaussian
from skanomaly.testing import SliceOnly, make_images, tiny
from skanomaly.volumes import VolumeDetector, _pool

X, NEW = make_images((30, 16, 16)), make_images((40, 16, 16), seed=1)
GROUPS, NEW_GROUPS = np.repeat(np.arange(10), 3), np.repeat(list("abcdefghij"), 4)


def volumes(**parameters):
    return VolumeDetector(tiny(FeatureGaussian), **parameters)


@pytest.mark.parametrize(
    "check",
    [
        check_estimator_cloneable,
        check_estimator_repr,
        check_estimators_unfitted,
        check_get_params_invariance,
        check_mixin_order,
        check_no_attributes_set_in_init,
        check_parameters_default_constructible,
        check_set_params,
    ],
)
def test_scikit_learn(check):
    """The checks that send no rows to `fit`: one result a volume, and groups, are beyond the others."""
    check("VolumeDetector", volumes())


@given(
    scores=st.lists(st.integers(-9, 9), min_size=1, max_size=30) | st.just(range(30)),
    seed=st.integers(0, 99),
    top_fraction=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
)
def test_pooling(scores, seed, top_fraction):
    scores, n = np.array(scores, float), min(len(scores), 4)
    members = np.random.default_rng(seed).permutation(np.arange(len(scores)) % n)
    of = [np.sort(scores[members == k])[::-1] for k in range(n)]
    n_top = [max(1, int(np.ceil(top_fraction * len(s) - 1e-9))) for s in of]
    expected = {
        "max": [s[0] for s in of],
        "mean": [s.mean() for s in of],
        "top": [s[:m].mean() for s, m in zip(of, n_top)],
    }
    for pooling, values in expected.items():
        assert_allclose(_pool(scores, n, members, pooling, top_fraction), values, atol=1e-9)


def test_scores_are_pooled_from_those_of_slices():
    detector = volumes(pooling="top", top_fraction=0.5).fit(X, groups=GROUPS)
    slices = np.sort(-detector.detector_.score_samples(NEW).reshape(10, 4), axis=1)
    assert_allclose(-detector.score_samples(NEW, groups=NEW_GROUPS), slices[:, 2:].mean(1))
    assert_array_equal(detector.detector_.score_samples(NEW), tiny(FeatureGaussian).fit(X).score_samples(NEW))


@given(order=st.permutations(range(40)))
def test_slices_may_come_in_any_order(order):
    detector = volumes().fit(X, groups=GROUPS)
    order = np.array(order)
    names = detector.volume_names(NEW[order], groups=NEW_GROUPS[order])
    found = dict(zip(names, detector.score_samples(NEW[order], groups=NEW_GROUPS[order])))
    expected = dict(zip("abcdefghij", detector.score_samples(NEW, groups=NEW_GROUPS)))
    assert found == expected
    assert names == list(dict.fromkeys(NEW_GROUPS[order]))
    maps = detector.anomaly_map(NEW[order], groups=NEW_GROUPS[order])
    rows = order[NEW_GROUPS[order] == "c"]
    assert_array_equal(maps["c"], detector.detector_.anomaly_map(NEW[rows]))


def test_thresholds():
    detector = volumes(contamination=0.2).fit(X, groups=GROUPS)
    assert np.sum(detector.predict(X, groups=GROUPS) == -1) == 2
    assert_array_equal(
        volumes(contamination=0.2).fit_predict(X, groups=GROUPS), detector.predict(X, groups=GROUPS)
    )
    for method in detector.p_value, detector.drift:
        with pytest.raises(NotFittedError, match="calibrate"):
            method(X, groups=GROUPS)
    detector.calibrate(NEW, groups=NEW_GROUPS, false_alarm_rate=0.2)
    known, scores = -detector.score_samples(NEW, groups=NEW_GROUPS), -detector.score_samples(X, groups=GROUPS)
    p = (1 + (known >= scores[:, None]).sum(1)) / 11
    assert_allclose(detector.p_value(X, groups=GROUPS), p)
    assert_array_equal(detector.predict(X, groups=GROUPS, false_alarm_rate=0.5), np.where(p <= 0.5, -1, 1))
    assert np.sum(detector.predict(NEW, groups=NEW_GROUPS) == -1) == 2  # floor(11 * 0.2)
    assert detector.drift(NEW, groups=NEW_GROUPS) == (0, 1)
    with pytest.warns(UserWarning, match="10 volumes cannot show a false alarm rate of 0.05"):
        detector.calibrate(NEW, groups=NEW_GROUPS)
    assert not hasattr(detector.fit(X, groups=GROUPS), "calibration_scores_")


@pytest.mark.parametrize("pooling", ["max", "mean", "top"])
def test_a_fill_value_in_a_slice_sets_no_threshold(pooling):
    """Fault 1: offset_ became -1e38, so that no volume was flagged again."""
    detector = VolumeDetector(tiny(AutoEncoder), pooling=pooling).fit(X.astype(np.float32), groups=GROUPS)
    new = NEW.astype(np.float32)
    spoilt = new.copy()
    spoilt[5, 0, 0] = 9.96921e36  # netCDF's default fill value, in volume "b"
    frozen = VolumeDetector(FrozenEstimator(detector.detector_), pooling=pooling)
    offset = detector.calibrate(new, groups=NEW_GROUPS, false_alarm_rate=0.2).offset_
    for verb in frozen.fit, detector.calibrate, detector.drift:
        with pytest.raises(ValueError, match="image 5 of X is not finite"):
            verb(spoilt, groups=NEW_GROUPS)
    assert detector.offset_ == offset
    scores = detector.score_samples(spoilt, groups=NEW_GROUPS)
    others = np.arange(10) != 1
    assert scores[1] == -float(np.finfo(np.float32).max)
    assert_array_equal(scores[others], detector.score_samples(new, groups=NEW_GROUPS)[others])
    # Volumes that do not count may hold anything.
    y = np.where(np.arange(40) == 4, -1, 1)
    assert frozen.fit(spoilt, y, groups=NEW_GROUPS).offset_ > -1e30
    assert detector.calibrate(spoilt, y, groups=NEW_GROUPS, false_alarm_rate=0.2).offset_ > -1e30


def test_a_volume_with_one_ill_slice_is_ill():
    y = np.ones(30, int)
    y[[4, 20]] = -1
    detector = volumes(contamination=0.5).fit(X, y, groups=GROUPS)
    other = tiny(FeatureGaussian).fit(X[y == 1])
    assert_array_equal(detector.detector_.score_samples(NEW), other.score_samples(NEW))
    normal = np.delete(np.arange(10), [1, 6])
    scores = detector.score_samples(X, groups=GROUPS)
    assert detector.offset_ == np.percentile(scores[normal], 50)
    detector.calibrate(X, y, groups=GROUPS, false_alarm_rate=0.2)
    assert_allclose(detector.calibration_scores_, np.sort(-scores[normal]))
    y[27] = 0  # who knows
    detector.calibrate(X, y, groups=GROUPS, false_alarm_rate=0.2)
    assert_allclose(detector.calibration_scores_, np.sort(-scores[normal[:-1]]))
    with pytest.raises(ValueError, match="no volume is normal"):
        detector.calibrate(X, np.where(np.arange(30) % 3, 1, -1), groups=GROUPS)
    with pytest.raises(ValueError, match="none is left"):
        detector.fit(X, np.where(np.arange(30) % 3, 1, -1), groups=GROUPS)
    assert_array_equal(detector.score_samples(X, groups=GROUPS), scores)


def test_maps_and_masks():
    detector = volumes().fit(X, groups=GROUPS)
    slices = detector.detector_
    maps = detector.anomaly_map(NEW, groups=NEW_GROUPS)
    assert list(maps) == list("abcdefghij")
    assert_array_equal(maps["b"], slices.anomaly_map(NEW[4:8]))
    masks = detector.segment(NEW, groups=NEW_GROUPS, min_size=2)
    assert_array_equal(masks["j"], slices.segment(NEW[36:], min_size=2))


class Files(SliceOnly):
    """A lazy X that knows the volume of each slice."""

    groups = GROUPS


def test_a_lazy_X_may_say_its_groups():
    lazy = Files(X)
    detector = volumes().fit(lazy)
    expected = volumes().fit(X, groups=GROUPS)
    assert_array_equal(detector.score_samples(lazy), expected.score_samples(X, groups=GROUPS))
    assert_array_equal(detector.anomaly_map(lazy)[3], expected.anomaly_map(X, groups=GROUPS)[3])
    lists = expected.anomaly_map(list(X), groups=GROUPS)
    assert_array_equal(lists[3], expected.anomaly_map(X, groups=GROUPS)[3])


def test_one_volume_at_a_time():
    seen = []

    class Watched(Files):
        def __getitem__(self, rows):
            seen.append(rows)
            return super().__getitem__(rows)

    detector = volumes().fit(Files(X))
    maps = detector.iter_maps(Watched(X))
    next(maps)
    assert max(rows.stop for rows in seen) == 3


def test_frozen_and_in_a_pipeline():
    frozen = FrozenEstimator(tiny(FeatureGaussian).fit(X))
    expected = volumes().fit(X, groups=GROUPS).score_samples(NEW, groups=NEW_GROUPS)
    assert_array_equal(
        VolumeDetector(frozen).fit(X, groups=GROUPS).score_samples(NEW, groups=NEW_GROUPS), expected
    )
    pipeline = make_pipeline(FunctionTransformer(), volumes()).fit(X, volumedetector__groups=GROUPS)
    assert_array_equal(pipeline[-1].score_samples(NEW, groups=NEW_GROUPS), expected)
    inside = VolumeDetector(make_pipeline(FunctionTransformer(), tiny(FeatureGaussian))).fit(X, groups=GROUPS)
    assert_array_equal(inside.score_samples(NEW, groups=NEW_GROUPS), expected)
    assert inside.anomaly_map(NEW, groups=NEW_GROUPS)["a"].shape == (4, 16, 16)
    again = pickle.loads(pickle.dumps(inside))
    assert_array_equal(again.score_samples(NEW, groups=NEW_GROUPS), expected)
    assert clone(inside).get_params()["pooling"] == "max"


@pytest.mark.parametrize(
    ("parameters", "groups", "message"),
    [
        ({}, None, "needs the volume of each slice"),
        ({}, GROUPS[:-1], "inconsistent numbers of samples"),
        ({}, [None, *GROUPS[1:]], "groups is missing for row 0"),
        ({}, [*GROUPS[:-1], np.nan], "groups is missing for row 29"),
        ({"pooling": "median"}, GROUPS, "pooling"),
        ({"contamination": 0.7}, GROUPS, "contamination"),
    ],
)
def test_wrong_input(parameters, groups, message):
    detector = volumes(**parameters)
    with pytest.raises(ValueError, match=message):
        detector.fit(X, groups=groups)
    assert not hasattr(detector, "detector_")

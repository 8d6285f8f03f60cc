"""p-values, false discovery rates and drift: simulated scores, X-rays, ties, files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import false_discovery_control, ks_2samp, kstest
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skanomaly
from skanomaly import FeatureGaussian, PatchDetector, ScoreEnsemble, merge, persistence
from skanomaly.base import conformal_p, two_samples
from skanomaly.datasets import load_chest_xray
from skanomaly.testing import make_images, tiny

X, NEW = make_images((30, 16, 16)), make_images((39, 16, 16), seed=1)


def gaussian(**parameters):
    return tiny(FeatureGaussian, **parameters)


@given(
    known=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    scores=st.lists(st.integers(-4, 4), min_size=1, max_size=8),
)
def test_p_is_a_rank_and_ties_are_conservative(known, scores):
    p = conformal_p(np.sort(np.array(known, float)), np.array(scores, float))
    expected = [(1 + sum(k >= s for k in known)) / (len(known) + 1) for s in scores]
    assert_allclose(p, expected)
    # However many are equal, a calibration image itself is never flagged at 1 / (n + 1) or below.
    of_known = conformal_p(np.sort(np.array(known, float)), np.array(known, float))
    assert (of_known >= 2 / (len(known) + 1) - 1e-12).all()


def test_p_values_of_normal_images_are_uniform():
    """A new calibration for each draw; up to the steps of 1 / (n + 1), which a random share smooths."""
    rng = np.random.default_rng(0)
    known, new = np.sort(rng.standard_t(2, (2000, 99))), rng.standard_t(2, 2000)
    p = np.array([conformal_p(k, np.array([s]))[0] for k, s in zip(known, new)])
    smooth = p - rng.uniform(0, 1 / 100, 2000)
    assert kstest(smooth, "uniform").pvalue > 0.05
    for level in 0.01, 0.05, 0.2:
        assert np.mean(p <= level) <= level + 2.5 * np.sqrt(level * (1 - level) / 2000)


def test_the_false_discovery_rate_is_below_the_level():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        known = np.sort(rng.standard_normal(400))
        ill = rng.random(200) < 0.2
        scores = rng.standard_normal(200) + 3 * ill
        found = false_discovery_control(conformal_p(known, scores)) <= 0.1
        shares.append((found & ~ill).sum() / max(found.sum(), 1))
        assert found.any()
    assert np.mean(shares) <= 0.1


@pytest.fixture(scope="module")
def chests():
    """Anomaly scores of normal X-rays that were not trained on, and of those with pneumonia."""
    train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))
    detector = FeatureGaussian(backbone="filters").fit(train.images)
    images, target = np.concatenate([val.images, test.images]), np.concatenate([val.target, test.target])
    scores = -detector.score_samples(images)
    return detector, scores[target == 1], scores[target == -1]


def test_false_alarms_on_chest_x_rays(chests):
    _, normal, _ = chests
    rng, rates = np.random.default_rng(0), []
    for _ in range(200):
        order = rng.permutation(normal)
        half = len(order) // 2
        rates.append(np.mean(conformal_p(np.sort(order[:half]), order[half:]) <= 0.05))
    assert np.mean(rates) <= 0.06


def test_false_discoveries_on_chest_x_rays(chests):
    _, normal, ill = chests
    rng, shares, n_found = np.random.default_rng(0), [], []
    for _ in range(200):
        order = rng.permutation(normal)
        half = len(order) // 2
        scores = np.concatenate([order[half:], rng.permutation(ill)[:120]])
        found = false_discovery_control(conformal_p(np.sort(order[:half]), scores)) <= 0.2
        shares.append(found[: len(order) - half].sum() / max(found.sum(), 1))
        n_found.append(found.sum())
    assert np.mean(shares) <= 0.2
    assert np.mean(n_found) > 20, "some of the ill are found"


@pytest.mark.parametrize("split", ["val", "val and test"])
def test_drift_of_the_same_hospital(chests, split):
    """Rejected about as often as the level says, as images of `calibrate` and new ones change places."""
    _, normal, _ = chests
    normal = normal[:77] if split == "val" else normal
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(500):
        new, known = np.array_split(rng.permutation(normal), 2)
        rejected += two_samples(new, known).pvalue <= 0.05
    assert rejected / 500 <= 0.07


def test_drift_to_another_hospital(chests, benchmark_data):
    detector, _, _ = chests
    val, other = load_chest_xray(subset="val"), benchmark_data("cxr_nih_64")
    detector.calibrate(val.images, val.target)
    normal = other["images"][other["labels"] == 0]
    assert detector.drift(normal).pvalue < 0.01
    test = load_chest_xray(subset="test")
    assert detector.drift(test.images, test.target).pvalue > 0.05


def test_drift_is_the_test_of_scipy():
    detector = gaussian().fit(X).calibrate(NEW)
    expected = ks_2samp(-detector.score_samples(X), -detector.score_samples(NEW))
    assert detector.drift(X) == (expected.statistic, expected.pvalue)
    y = np.resize([1, 1, -1, 0], 30)
    assert detector.drift(X, y) == detector.drift(X[y == 1])


def test_inside_pipelines_and_searches():
    detector = gaussian().fit(X).calibrate(NEW)
    expected = detector.p_value(X)
    upside_down = FunctionTransformer(np.flipud)
    held = make_pipeline(upside_down, FrozenEstimator(detector)).fit(X)
    assert_array_equal(skanomaly.p_value(held, X), expected[::-1])
    assert_array_equal(skanomaly.p_value(FrozenEstimator(detector), X), expected)
    labels = held.predict(X, false_alarm_rate=0.3)
    assert_array_equal(labels, np.where(expected[::-1] <= 0.3, -1, 1))
    search = GridSearchCV(gaussian(), {"blur": [0.0]}, scoring=lambda *_: 0.0, cv=2).fit(X)
    search.best_estimator_.calibrate(NEW)
    assert len(skanomaly.p_value(search, X)) == 30
    with pytest.raises(TypeError, match="has no p_value"):
        skanomaly.p_value(upside_down, X)


@pytest.mark.parametrize("cls", [FeatureGaussian, ScoreEnsemble, PatchDetector])
def test_files(cls, tmp_path):
    detector = tiny(cls).fit(X)
    persistence.save(detector, tmp_path / "before")
    assert not hasattr(persistence.load(tmp_path / "before"), "calibration_scores_")
    persistence.save(detector.calibrate(NEW), tmp_path / "after")
    assert_array_equal(persistence.load(tmp_path / "after").p_value(X), detector.p_value(X))


@pytest.mark.parametrize(
    "forged",
    [np.array([2.0, 1.0]), np.array([1.0, np.nan]), np.array([[1.0]]), np.array([]), np.array([1, 2]), [1.0]],
)
def test_forged_scores_are_refused(forged, tmp_path):
    detector = gaussian().fit(X).calibrate(NEW)
    detector.calibration_scores_ = forged
    with pytest.raises(ValueError, match="calibration_scores_ cannot be"):
        persistence.save(detector, tmp_path / "file")


def test_what_a_detector_learns_later_forgets_the_calibration():
    sites = [gaussian(keep_sums=True, intensity_range=(0, 255)).fit(part).calibrate(NEW) for part in (X, NEW)]
    assert not hasattr(merge(sites, force=True), "calibration_scores_")
    assert not hasattr(sites[0].partial_fit(NEW), "calibration_scores_")


def test_a_calibration_that_fails_keeps_the_last():
    detector = gaussian().fit(X).calibrate(NEW)
    before = detector.calibration_scores_
    with pytest.raises(ValueError, match="false_alarm_rate"):
        detector.calibrate(X, false_alarm_rate=0)
    assert detector.calibration_scores_ is before

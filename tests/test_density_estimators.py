"""Outlier detectors of rows: equations by brute force, labels, and Pipelines behind ImageFeatures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skanomaly.datasets import load_chest_xray
from skanomaly.density import CBLOF, PrincipalComponentClassifier, RobustKernelDensity
from skanomaly.density import n_large as count_large
from skanomaly.features import ImageFeatures
from skanomaly.labels import LabelWarning
from skanomaly.metrics import auroc

ESTIMATORS = [RobustKernelDensity(), CBLOF(n_clusters=3, random_state=0), PrincipalComponentClassifier()]
LOSSES = "hampel", "huber", "absolute"


def rows(n=60, d=3, seed=0):
    """Rows with correlated features of several units, the last of which is far out."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * (1 + np.arange(d))
    X[-1] += 30
    return X


@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn(estimator, check):
    check(estimator)


# What the three share.


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_known_anomalies_are_left_out(estimator):
    X, y = rows(), np.r_[np.ones(50), -np.ones(10)]
    fitted = clone(estimator).fit(X, y)
    assert_array_equal(fitted.score_samples(X), clone(estimator).fit(X[:50]).score_samples(X))
    assert fitted.offset_ == np.percentile(fitted.score_samples(X[:50]), 10)
    with pytest.raises(ValueError, match="y leaves 1 of 60 images"):
        fitted.fit(X, np.r_[1, -np.ones(59)])
    with pytest.warns(LabelWarning, match="y has no -1"):
        fitted.fit(X, np.arange(60) % 2)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_fit_that_fails_changes_nothing(estimator):
    X = rows()
    fitted = clone(estimator).fit(X)
    before = fitted.score_samples(X)
    with pytest.raises(ValueError, match="NaN"):
        fitted.fit(np.full((9, 5), np.nan))
    assert_array_equal(fitted.score_samples(X), before)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="far beyond"):
        fitted.fit(X * 1e200)  # squares of these leave float64
    assert_array_equal(fitted.score_samples(X), before)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_score_is_that_of_the_row_alone(estimator):
    X = rows(n=700)
    fitted = clone(estimator).fit(X)
    assert_allclose(fitted.score_samples(X)[-3:], [fitted.score_samples(X[[i]])[0] for i in (-3, -2, -1)])
    assert_allclose(fitted.score_samples(X.astype(np.float32)), fitted.score_samples(X), rtol=1e-3)
    assert fitted.score_samples(X).argmin() == 699
    assert fitted.predict(X)[-1] == -1
    assert (fitted.predict(X) == -1).mean() == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("estimator", [ESTIMATORS[0], ESTIMATORS[2]])
def test_equal_rows_are_refused(estimator):
    with pytest.raises(ValueError, match="all rows are equal"):
        clone(estimator).fit(np.full((5, 2), 0.1))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (RobustKernelDensity(bandwidth=0), "bandwidth"),
        (RobustKernelDensity(bandwidth="scott"), "bandwidth"),
        (RobustKernelDensity(loss="square"), "loss"),
        (RobustKernelDensity(max_iter=0), "max_iter"),
        (RobustKernelDensity(contamination=0.0), "contamination"),
        (CBLOF(alpha=0.0), "alpha"),
        (CBLOF(beta=0.5), "beta"),
        (CBLOF(n_clusters=61), "n_clusters=61 .* there are 60; give more rows or fewer clusters"),
        (PrincipalComponentClassifier(major=1.1), "major"),
        (PrincipalComponentClassifier(minor=-1), "minor"),
        (PrincipalComponentClassifier(trim=0.6), "trim"),
        (PrincipalComponentClassifier(major=0.0, minor=0.0), "no component is left: major=0.0"),
    ],
)
def test_bad_parameters(estimator, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(rows())


# Robust kernel density.


def mapped(X, h):
    """Rows whose inner products are the kernels: coordinates of the kernels' own Hilbert space."""
    squares = np.array([[((a - b) ** 2).sum() for b in X] for a in X])
    return np.linalg.cholesky(np.exp(-squares / (2 * h**2)) + 1e-12 * np.eye(len(X)))


def slope(loss, r, a, b, c):
    """psi(r): derivative of the loss."""
    if loss == "absolute":
        return 1.0
    if r <= a:
        return r
    if loss == "huber" or r <= b:
        return a
    return a * (c - r) / (c - b) if r < c else 0.0


def minimiser(points, of):
    """Point with the least mean loss of the distances to `points`, by a general optimiser."""

    def objective(g):
        distances = np.linalg.norm(points - g, axis=1)
        return np.mean([of(r) for r in distances])

    return minimize(objective, points.mean(0), method="BFGS", options={"gtol": 1e-9}).x


@pytest.mark.filterwarnings("ignore::scipy.optimize.OptimizeWarning")
def test_the_robust_mean_minimises_the_loss():
    """Both convex losses, in coordinates of the Hilbert space instead of by weights."""
    X, h = rows(n=12, d=2), 3.0
    points = mapped(X, h)
    median = minimiser(points, lambda r: r)
    fitted = RobustKernelDensity(bandwidth=h, loss="absolute", tol=1e-10, max_iter=5000).fit(X)
    assert_allclose(fitted.weights_ @ points, median, atol=1e-5)
    a = np.median(np.linalg.norm(points - median, axis=1))
    mean = minimiser(points, lambda r: r**2 / 2 if r <= a else a * r - a**2 / 2)
    fitted = RobustKernelDensity(bandwidth=h, loss="huber", tol=1e-10, max_iter=5000).fit(X)
    assert_allclose(fitted.weights_ @ points, mean, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_are_slopes_by_distance(loss):
    """Weights of the iterations, written out; those of the last step are their own next ones."""
    X, h = rows(n=20, d=2), 2.0
    points = mapped(X, h)
    fitted = RobustKernelDensity(bandwidth=h, loss=loss, tol=1e-9, max_iter=9999).fit(X)
    median = RobustKernelDensity(bandwidth=h, loss="absolute", tol=1e-9, max_iter=9999).fit(X)
    distances = [np.linalg.norm(p - median.weights_ @ points) for p in points]
    a, b, c = (np.quantile(distances, q) for q in (0.5, 0.75, 0.95))
    center = fitted.weights_ @ points
    again = [slope(loss, r, a, b, c) / r for r in (np.linalg.norm(p - center) for p in points)]
    assert_allclose(fitted.weights_, np.array(again) / sum(again), atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_score_is_the_logarithm_of_a_weighted_density(loss):
    X, new = rows(d=4), rows(d=4, seed=1)
    fitted = RobustKernelDensity(bandwidth=1.7, loss=loss).fit(X)
    expected = KernelDensity(bandwidth=1.7).fit(X, sample_weight=np.maximum(fitted.weights_, 1e-300))
    assert_allclose(fitted.score_samples(new), expected.score_samples(new), rtol=1e-6)
    # Density of one row by hand.
    kernels = [math.exp(-sum((new[0] - x) ** 2) / (2 * 1.7**2)) / (2 * math.pi * 1.7**2) ** 2 for x in X]
    assert_allclose(np.exp(fitted.score_samples(new[:1])), fitted.weights_ @ kernels)


@given(
    arrays(float, st.tuples(st.integers(2, 12), st.integers(1, 3)), elements=st.integers(-3, 3)),
    st.sampled_from(LOSSES),
    st.sampled_from([0.0, 1e-5]),
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_weights_sum_to_one(X, loss, tol):
    """Ties and duplicates among them, where all rows can be equally far out."""
    fitted = RobustKernelDensity(bandwidth=1.0, loss=loss, tol=tol, max_iter=30).fit(X)
    assert_allclose(fitted.weights_.sum(), 1)
    assert (fitted.weights_ >= 0).all()
    assert np.isfinite(fitted.score_samples(X)).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bandwidth", [0.01, 0.5, 50.0, 1e4])
def test_rows_equally_far_out_have_equal_weights(loss, bandwidth):
    """Corners of a simplex; with a small bandwidth, any rows are."""
    for n in (5, 10, 12):
        fitted = RobustKernelDensity(bandwidth=bandwidth, loss=loss).fit(np.eye(n))
        assert_allclose(fitted.weights_, 1 / n)


@pytest.mark.parametrize("n", [15, 21, 28])
def test_rows_that_are_equal_but_for_rounding_keep_their_weights(n):
    """With so large a bandwidth all kernels are one, and distances are rounding."""
    fitted = RobustKernelDensity(bandwidth=1e7, tol=0.0).fit(np.eye(n))
    assert_allclose(fitted.weights_.sum(), 1)


def test_weights_of_rows_far_out():
    X = rows()
    weights = {loss: RobustKernelDensity(loss=loss).fit(X).weights_ for loss in LOSSES}
    assert weights["hampel"][-1] == 0
    assert 0 < weights["huber"][-1] < 1 / len(X)
    assert 0 < weights["absolute"][-1] < 1 / len(X)


def test_the_bandwidth_is_the_distance_to_the_nearest_different_row():
    X = np.r_[rows(n=21), rows(n=21)[:5]]
    distances = [min(d for b in X if (d := np.linalg.norm(a - b)) > 0) for a in X]
    fitted = RobustKernelDensity().fit(X)
    assert_allclose(fitted.bandwidth_, np.median(distances))
    larger = RobustKernelDensity().fit(1000 * X)
    assert_allclose(larger.weights_, fitted.weights_, atol=1e-6)


def test_iterations_that_do_not_end_are_reported():
    with pytest.warns(ConvergenceWarning, match="after 1 iterations; raise max_iter or tol"):
        fitted = RobustKernelDensity(loss="absolute", max_iter=1, tol=0.0).fit(rows())
    assert fitted.n_iter_ == 1


def test_scattered_anomalies_in_training_count_less_than_in_a_plain_density():
    """The estimate is nearer to the density of normal rows, as in the paper's experiments."""
    rng = np.random.default_rng(0)
    X = np.r_[rng.normal(size=(140, 2)), rng.uniform(-6, 6, (40, 2))]
    new = rng.uniform(-6, 6, (500, 2))
    true = np.exp(-(new**2).sum(1) / 2) / (2 * math.pi)
    plain = KernelDensity(bandwidth=0.5).fit(X)
    robust = RobustKernelDensity(bandwidth=0.5).fit(X)
    error, plain_error = (np.abs(np.exp(of.score_samples(new)) - true).mean() for of in (robust, plain))
    assert error < 0.6 * plain_error
    assert robust.weights_[np.linalg.norm(X, axis=1) > 4].sum() < 0.01


# Cluster-based local outlier factor.


@pytest.mark.parametrize(
    ("sizes", "alpha", "beta", "expected"),
    [
        ([50, 30, 15, 5], 0.9, 5, 3),
        ([50, 30, 15, 5], 0.8, 5, 2),  # exactly the share
        ([50, 30, 15, 5], 1.0, 5, 4),
        ([50, 30, 15, 5], 1.0, 3, 3),  # exactly the ratio
        ([46, 44, 6, 4], 1.0, 5, 2),
        ([90, 6, 4], 0.9, 5, 1),
        ([7], 0.9, 5, 1),
    ],
)
def test_large_clusters(sizes, alpha, beta, expected):
    assert count_large(np.array(sizes), alpha, beta) == expected


def groups():
    """A large group, a smaller one, and a few rows that lie together far out."""
    rng = np.random.default_rng(0)
    return np.r_[rng.normal(0, 1, (50, 2)), rng.normal(8, 1, (30, 2)), rng.normal([20, 0], 0.3, (5, 2))]


@pytest.mark.parametrize("use_weights", [False, True])
def test_the_factor_by_brute_force(use_weights):
    X = groups()
    new = np.r_[X, rows(d=2)]
    fitted = CBLOF(n_clusters=3, use_weights=use_weights, random_state=0).fit(X)
    means = KMeans(3, n_init=10, random_state=0).fit(X)
    sizes = {k: int((means.labels_ == k).sum()) for k in range(3)}
    order = sorted(sizes, key=sizes.get, reverse=True)
    assert fitted.cluster_sizes_.tolist() == [50, 30, 5]
    assert fitted.n_large_ == 2
    expected = []
    for row in new:
        distances = {k: math.dist(row, means.cluster_centers_[k]) for k in range(3)}
        own = min(distances, key=distances.get)
        factor = distances[own] if own in order[:2] else min(distances[k] for k in order[:2])
        expected.append(-factor * (sizes[own] if use_weights else 1))
    assert_allclose(fitted.score_samples(new), expected)


def test_rows_of_a_small_cluster_are_anomalous():
    X = groups()
    fitted = CBLOF(n_clusters=3, random_state=0).fit(X)
    assert set(fitted.score_samples(X).argsort()[:5]) == set(range(80, 85))
    one = CBLOF(n_clusters=3, alpha=1.0, random_state=0, beta=1e9).fit(X)
    assert one.n_large_ == 3
    assert not set(one.score_samples(X).argsort()[:5]) & set(range(80, 85))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters:sklearn.exceptions.ConvergenceWarning")
def test_clusters_that_no_row_is_in_are_left_out():
    fitted = CBLOF(n_clusters=4, random_state=0).fit([[0.0], [0.0], [1.0], [1.0]])
    assert fitted.cluster_sizes_.tolist() == [2, 2]
    assert_array_equal(fitted.score_samples([[0.0], [1.0], [3.0]]), [0, 0, -2])


# Principal component classifier.


def components_by_hand(X):
    """Mean, deviation, variances and directions from the correlation matrix."""
    values, vectors = np.linalg.eigh(np.corrcoef(X.T))
    return X.mean(0), X.std(0, ddof=1), values[::-1], vectors.T[::-1]


def test_all_components_make_the_mahalanobis_distance():
    X, new = rows(d=5), rows(d=5, seed=1)
    for d in range(1, 40):  # however the variances are summed
        all_major = PrincipalComponentClassifier(major=1.0).fit(rows(d=d, seed=d))
        assert (all_major.n_major_, all_major.n_minor_) == (d, 0)
    fitted = PrincipalComponentClassifier(major=1.0, trim=0.0).fit(X)
    inverse = np.linalg.inv(np.cov(X.T))
    expected = [(row - X.mean(0)) @ inverse @ (row - X.mean(0)) for row in new]
    found = fitted.score_components(new)
    assert_allclose(found["major"], expected)
    assert_array_equal(found["minor"], 0)
    assert_allclose(fitted.score_samples(new), -np.array(expected) / fitted.thresholds_[0])


def test_both_sums_by_brute_force():
    X, new = rows(d=6), rows(d=6, seed=1)
    fitted = PrincipalComponentClassifier(trim=0.0).fit(X)
    mean, deviation, values, vectors = components_by_hand(X)
    n_major, so_far = 0, 0.0
    while so_far < 0.5 * sum(values):
        so_far, n_major = so_far + values[n_major], n_major + 1
    minor = [i for i in range(n_major, 6) if values[i] < 0.2]
    assert n_major == fitted.n_major_ >= 1
    assert len(minor) == fitted.n_minor_ >= 1

    def sums(row):
        places = [sum(v * (x - m) / s for v, x, m, s in zip(of, row, mean, deviation)) for of in vectors]
        parts = [y**2 / value for y, value in zip(places, values)]
        return sum(parts[:n_major]), sum(parts[i] for i in minor)

    found = fitted.score_components(new)
    assert_allclose(np.transpose([found["major"], found["minor"]]), [sums(row) for row in new])
    # Of the training rows each threshold leaves 1 - sqrt(.9), and both together a tenth if independent.
    c1, c2 = np.quantile([sums(row) for row in X], math.sqrt(0.9), axis=0)
    assert_allclose(fitted.thresholds_, [c1, c2])
    assert_allclose(fitted.score_samples(new), [-max(a / c1, b / c2) for a, b in map(sums, new)])


def test_rows_farthest_out_are_left_out_of_the_components():
    X = rows(n=50)
    fitted = PrincipalComponentClassifier(trim=0.05).fit(X)
    distances = PrincipalComponentClassifier(major=1.0, trim=0.0).fit(X).score_components(X)["major"]
    kept = X[np.sort(distances.argsort()[:-2])]  # 2.5 rows are 2
    mean, deviation, values, _ = components_by_hand(kept)
    assert_allclose(fitted.mean_, mean)
    assert_allclose(fitted.scale_, deviation)
    assert_allclose(fitted.variances_, values)
    # Thresholds are of all rows.
    assert_allclose((fitted.predict(X) == -1).mean(), 0.1)
    few = PrincipalComponentClassifier(trim=0.5).fit(X[:6])
    assert_allclose(few.mean_, X[:6].mean(0), err_msg="three rows of three features would remain")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_directions_without_variance_have_no_component(dtype):
    """Features that are constant, and features that others determine but for rounding."""
    X = rows(n=40, d=3)
    X = np.c_[X, X.sum(1), np.full(40, 0.1), X[:, 0] * 7 + 3].astype(dtype)
    fitted = PrincipalComponentClassifier(trim=0.0).fit(X)
    assert fitted.components_.shape == (3, 6)
    assert_allclose(fitted.components_[:, 4], 0, atol=1e-5)
    wide = PrincipalComponentClassifier(major=1.0).fit(rows(n=10, d=30))
    assert wide.components_.shape == (9, 30)
    # As many as there are: all training rows are equally far out, by (n - 1)^2 / n.
    assert_allclose(wide.score_components(rows(n=10, d=30))["major"], 8.1)


def test_rows_that_are_mostly_the_mean():
    X = np.zeros((100, 1))
    X[:2, 0] = 1, -1
    fitted = PrincipalComponentClassifier(trim=0.0).fit(X)
    assert fitted.predict(X).tolist() == [-1] * 2 + [1] * 98
    assert np.isfinite(fitted.score_samples(X)).all()


def test_correlations_that_do_not_hold_are_minor():
    """A row within the range of each feature, and one far along the main direction."""
    x = np.random.default_rng(0).normal(size=200)
    X = np.c_[x, x + 0.1 * np.random.default_rng(1).normal(size=200)]
    fitted = PrincipalComponentClassifier().fit(X)
    found = fitted.score_components([[1, -1], [6, 6]])
    assert found["minor"][0] > 50 > 5 > found["major"][0]
    assert found["major"][1] > 20 > 5 > found["minor"][1]
    assert fitted.predict([[1, -1], [6, 6], [1, 1]]).tolist() == [-1, -1, 1]


# Behind ImageFeatures.


@pytest.mark.parametrize(
    ("step", "least"),
    [(RobustKernelDensity(), 0.8), (CBLOF(random_state=0), 0.75), (PrincipalComponentClassifier(), 0.75)],
    ids=["kernels", "clusters", "components"],
)
def test_images_are_judged_in_a_pipeline(step, least):
    train, val = (load_chest_xray(subset=subset) for subset in ("train", "val"))
    features = ImageFeatures(backbone="filters", grid=2)
    detector = make_pipeline(features, step).fit(train.images, train.target)
    assert auroc(val.target, -detector.score_samples(val.images)) > least
    false_alarms = (detector.predict(val.images)[val.target == 1] == -1).mean()
    assert 0.02 < false_alarms < 0.35

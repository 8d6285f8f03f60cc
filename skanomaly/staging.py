"""Severity of anomalies without labels of severity: residuals are clustered, and clusters put in order.

Li et al. 2023 (SSL-AnoVAE) cluster the residuals of anomalous images; the cluster with the larger residuals
is the more advanced stage. A Pipeline does this in steps, with any detector: `ResidualTransformer`, a
clusterer, `CentroidScorer`; or `ResidualTransformer`, `CentroidStager`. `AnomalyStager` does all steps at
once.
"""

import math
from numbers import Integral

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.cluster import KMeans
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import euclidean_distances
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, column_or_1d
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from ._atomic import all_or_nothing, atomic_fit
from ._finite import check_learned
from ._holder import HoldsDetector
from ._rows import take_rows
from ._unwrap import anomaly_map, call_inside, unwrap
from .base import open_images
from .labels import is_anomalous, warn_without_anomalies
from .segmentation import pool_blocks

__all__ = ["AnomalyStager", "CentroidScorer", "CentroidStager", "ResidualTransformer", "severity"]

#: Consequence of labels without -1, for a warning.
_NOT_MARKED = "all rows, labelled {labels}, were staged as if they were anomalous"


class ResidualTransformer(HoldsDetector, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Transformer from images to rows of residuals, the absolute differences of image and reconstruction.

    Parameters
    ----------
    detector : BaseDetector, Pipeline that ends in one, or FrozenEstimator of either, default=None
        Detector that reconstructs; None is ``AutoEncoder()``. A FrozenEstimator is used as it is, any other
        estimator is cloned and fitted to the rows with y other than -1. If the detector does not reconstruct,
        its anomaly maps take the place of residuals.
    pooling : int, default=None
        Side, in pixels, of the squares over which residuals are averaged, so that small shifts matter less.
        None does not average.

    Attributes
    ----------
    detector_ : BaseDetector, Pipeline or FrozenEstimator
        The fitted detector.
    n_features_in_ : int
        The detector's ``n_features_in_``.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame of rows.

    Examples
    --------
    >>> from skanomaly import AutoEncoder
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.staging import ResidualTransformer
    >>> X = load_chest_xray().images[:64]
    >>> ResidualTransformer(AutoEncoder(hidden_size=64, max_epochs=1), pooling=8).fit_transform(X).shape
    (64, 64)
    """

    _parameter_constraints = {
        "detector": [HasMethods(["fit", "score_samples"]), None],
        "pooling": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(self, detector=None, *, pooling=None):
        self.detector = detector
        self.pooling = pooling

    @atomic_fit(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit the detector, unless it is frozen.

        Parameters
        ----------
        X : array-like
            Images, as the detector takes them.
        y : (n,) array-like, default=None
            Labels: rows with -1 are left out.

        Returns
        -------
        self
        """
        self._fit_detector(X, y)
        # A list is read as a whole: its images may differ in size, and that is an error.
        self._n_features_out = self._residuals(X[:1] if hasattr(X, "shape") else X).shape[1]
        return self

    def transform(self, X):
        """Residuals, flattened.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        residuals : (n, n_pixels) float32 ndarray
            Residuals of all pixels and channels, or of all squares with `pooling`, in the units of X. They
            are not negative; anomaly maps that take their place may be.
        """
        check_is_fitted(self)
        return self._residuals(X)

    def _residuals(self, X):
        detector, seen = unwrap(self.detector_, X)
        if hasattr(detector, "reconstruct"):
            images = open_images(detector, seen)
            residuals = np.abs(images.raw() - images.layout.to_network(detector.reconstruct(seen)))
        else:
            residuals = anomaly_map(self.detector_, X)
            # Maps of different sizes come as a list.
            if isinstance(residuals, list):
                raise ValueError("images must be of one size to be compared with each other, got a list")
        if self.pooling is not None:
            residuals = pool_blocks(residuals, self.pooling)
        return residuals.reshape(len(residuals), -1).astype(np.float32, copy=False)


class _Stages:
    """Mixin that finds the stages of rows from their distances (n, K) to the centroids of K clusters."""

    def _distances(self, X):
        """Distances (n, K) of rows to the centroids, in the clusterer's order."""
        raise NotImplementedError

    def _order(self, D, anomaly_score=None, severities=None):
        """Order clusters by `severities`, or by the mean scores of their members, rows at distances `D`."""
        clusters, n_clusters = D.argmin(1), D.shape[1]
        if severities is None:
            counts = np.bincount(clusters, minlength=n_clusters)
            if not counts.all():
                raise ValueError(
                    f"{(counts == 0).sum()} of {n_clusters} clusters have no member; ask for fewer stages, "
                    "or give the rows that were clustered"
                )
            severities = np.bincount(clusters, anomaly_score, minlength=n_clusters) / counts
        check_learned(severity_=severities, distances=D)
        self.stage_order_ = np.argsort(severities, kind="stable")
        self.severity_ = severities[self.stage_order_]
        # A Pipeline passes on distances only, not centroids. The squared distance of two centroids is the
        # mean of d_lower^2 - d_upper^2 over the members of the upper one.
        steps = -np.diff(D[:, self.stage_order_].astype(np.float64) ** 2)
        gaps = [
            step[clusters == upper].mean() if (clusters == upper).any() else np.abs(step).mean()
            for step, upper in zip(steps.T, self.stage_order_[1:])
        ]
        # Between centroids that coincide, everything is half-way.
        self._gaps = np.array([gap or math.inf for gap in gaps])
        return self

    def predict(self, X):
        """Stage of each row.

        Parameters
        ----------
        X : array-like
            Rows like those given to `fit`.

        Returns
        -------
        stages : (n,) int ndarray
            Stage of the nearest centroid: 1 for the least severe cluster, K for the most severe one.
        """
        nearest = self._distances(X).argmin(1)
        # argsort inverts a permutation: from the stages' clusters to the clusters' stages.
        return np.argsort(self.stage_order_)[nearest] + 1

    def severity(self, X):
        """Place of each row on the way from the first stage to the last.

        Parameters
        ----------
        X : array-like
            Rows like those given to `fit`.

        Returns
        -------
        severity : (n,) float64 ndarray
            Severity of each row; higher is worse. For two stages it is 0 at the centroid of the first and 1
            at that of the second; it may be below 0 or above 1. For K stages it is the sum of K - 1 places
            between neighbouring stages. Each place is clipped to [0, 1], but the first may be below 0 and the
            last above 1.
        """
        squares = self._distances(X)[:, self.stage_order_].astype(np.float64) ** 2
        places = 0.5 + (squares[:, :-1] - squares[:, 1:]) / (2 * self._gaps)
        # Between neighbours; only the first and the last reach beyond their ends.
        low, high = np.zeros(places.shape[1]), np.ones(places.shape[1])
        low[:1], high[-1:] = -np.inf, np.inf
        return places.clip(low, high).sum(1)

    def score(self, X, y=None):
        """Distinctness of the stages: the simplified silhouette, mean of (b - a) / max(a, b).

        For each row, a is the distance to the nearest centroid and b the distance to the next. The score does
        not depend on the scale of the residuals, so that detectors can be compared by it.

        Parameters
        ----------
        X : array-like
            Rows like those given to `fit`.
        y : (n,) array-like, default=None
            Labels. If -1 occurs, only rows with -1 count.

        Returns
        -------
        score : float
            Between 0 and 1, higher is better.
        """
        D = self._distances(X)
        nearest, next_nearest = np.sort(D[_anomalous_rows(len(D), y)], axis=1)[:, :2].T
        return float(np.mean(1 - nearest / np.maximum(next_nearest, np.finfo(float).tiny)))


def _anomalous_rows(n, y):
    """Bool array that is True for rows with y == -1, or for all rows if there are none."""
    if y is not None and (anomalous := is_anomalous(y, n)).any():
        return anomalous
    return np.ones(n, dtype=bool)


def _check_scores(anomaly_score, X):
    """Scores as a float64 array. It is an error if one is not finite, or if X has another number of rows."""
    scores = check_array(anomaly_score, ensure_2d=False, dtype=np.float64, input_name="anomaly_score")
    check_consistent_length(X, scores)
    return column_or_1d(scores)


class CentroidScorer(_Stages, BaseEstimator):
    """Order of clusters by severity, from the distances to their centroids.

    It is the last step of ``Pipeline([("residual", ResidualTransformer(...)), ("kmeans", KMeans(2)),
    ("score", CentroidScorer())])``. Distances alone cannot order clusters, so the anomaly scores of the rows
    are needed. The severity of a cluster is the mean score of its members. If the scores are mean residuals,
    the severity is the mean of the cluster's centroid, its L1 norm divided by the number of pixels.

    Attributes
    ----------
    severity_ : (K,) ndarray
        Severity of each stage, ascending.
    stage_order_ : (K,) int ndarray
        Cluster of each stage.
    n_features_in_ : int
        Number of clusters, K.
    feature_names_in_ : (K,) ndarray
        Names of the columns, if the distances were a DataFrame.

    Notes
    -----
    Without scores, clusters can be ordered by labels: then the severity of a cluster is the mean distance of
    the normal rows (y other than -1) to its centroid. Cluster the anomalous rows only, by
    ``kmeans__sample_weight=(y == -1)``. An order by labels is second best: the centroid of a cluster with
    small bright lesions can be far from the normal rows although its mean residual is smaller. The order
    means nothing if y holds no -1: then all rows count as normal, and the largest cluster becomes the
    mildest.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.cluster import KMeans
    >>> from sklearn.pipeline import make_pipeline
    >>> from skanomaly.staging import CentroidScorer
    >>> residuals = np.array([[3.0, 3.2], [1.0, 0.9], [3.1, 3.0], [1.1, 1.0]])
    >>> stager = make_pipeline(KMeans(2, random_state=0), CentroidScorer())
    >>> stager.fit(residuals, centroidscorer__anomaly_score=residuals.mean(1)).predict(residuals)
    array([2, 1, 2, 1])
    """

    @all_or_nothing
    def fit(self, D, y=None, *, anomaly_score=None):
        """Order the clusters.

        Parameters
        ----------
        D : (n, K) array-like
            Distances of the rows to the centroids, as `KMeans.transform` returns them.
        y : (n,) array-like, default=None
            Labels. If -1 occurs and scores are given, only rows with -1 count.
        anomaly_score : (n,) array-like, default=None
            Scores of the rows, higher is worse. In a Pipeline, pass them as ``score__anomaly_score``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If neither scores nor y are given, if a cluster has no members to take scores from, or if y is
            used without scores and all rows are -1.
        """
        if y is None and anomaly_score is None:
            # The first words are those that scikit-learn's check of required targets looks for.
            raise ValueError(
                "CentroidScorer requires y to be passed, but the target y is None; better than y, pass the "
                "anomaly scores of the rows as anomaly_score=..., in a Pipeline score__anomaly_score=..."
            )
        D = self._distances(D, reset=True)
        rows = _anomalous_rows(len(D), y)
        warn_without_anomalies(y, _NOT_MARKED)
        if anomaly_score is not None:
            return self._order(D[rows], _check_scores(anomaly_score, D)[rows])
        normal = ~is_anomalous(y)
        if not normal.any():
            raise ValueError(
                "y holds no normal rows (other than -1) to compare clusters with; pass anomaly_score=..., in "
                "a Pipeline score__anomaly_score=..."
            )
        return self._order(D[rows], severities=D[normal].mean(0))

    def _distances(self, D, reset=False):
        if not reset:
            check_is_fitted(self)
        return validate_data(self, D, reset=reset, dtype=[np.float64, np.float32], ensure_non_negative=True)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.positive_only = True
        return tags


class CentroidStager(_Stages, BaseEstimator):
    """Stages of rows of residuals: clusters, ordered by the mean anomaly score of their members.

    Parameters
    ----------
    clusterer : clusterer with ``cluster_centers_`` or mixture with ``means_``, default=None
        Clusterer, of which a clone with ``n_clusters`` or ``n_components`` set to `n_stages` is fitted. None
        is ``KMeans(n_init=20)``, for which rows are sorted first, so that stages do not depend on their
        order.
    n_stages : int, default=2
        Number of stages, K in the paper.
    random_state : int, RandomState or None, default=None
        Seed of the default clusterer.

    Attributes
    ----------
    clusterer_ : clusterer
        The fitted clusterer.
    cluster_centers_ : (K, n_pixels) ndarray
        Mean residual of each stage.
    severity_ : (K,) ndarray
        Severity of each stage, ascending: mean anomaly score of its members.
    stage_order_ : (K,) int ndarray
        Cluster of each stage.
    n_features_in_ : int
        Number of values in a row.
    feature_names_in_ : (n_pixels,) ndarray
        Names of the columns, if X was a DataFrame.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.staging import CentroidStager
    >>> residuals = np.array([[3.0, 3.2], [1.0, 0.9], [3.1, 3.0], [1.1, 1.0]])
    >>> stager = CentroidStager(random_state=0).fit(residuals)
    >>> stager.predict(residuals), stager.severity_.round(3)
    (array([2, 1, 2, 1]), array([1.   , 3.075]))
    """

    _parameter_constraints = {
        "clusterer": [HasMethods(["fit"]), None],
        "n_stages": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(self, clusterer=None, *, n_stages=2, random_state=None):
        self.clusterer = clusterer
        self.n_stages = n_stages
        self.random_state = random_state

    @atomic_fit(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, *, anomaly_score=None):
        """Cluster residuals.

        Parameters
        ----------
        X : (n, n_pixels) array-like
            Residuals, as `ResidualTransformer` returns them.
        y : (n,) array-like, default=None
            Labels. If -1 occurs, only rows with -1 are clustered.
        anomaly_score : (n,) array-like, default=None
            Scores of the rows, higher is worse; None takes the mean of each row.

        Returns
        -------
        self
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=self.n_stages)
        rows = _anomalous_rows(len(X), y)
        warn_without_anomalies(y, _NOT_MARKED)
        if rows.sum() < self.n_stages:
            raise ValueError(
                f"n_stages={self.n_stages} needs as many anomalous rows (y == -1) at least, got {rows.sum()}"
            )
        score = X.mean(1, dtype=np.float64) if anomaly_score is None else _check_scores(anomaly_score, X)
        X, score = X[rows], score[rows]
        if self.clusterer is None:
            clusterer = KMeans(n_init=20, random_state=self.random_state)
            # k-means++ draws its first centroids by their positions in the array.
            members = X[np.lexsort(X.T[::-1])]
        else:
            clusterer, members = clone(self.clusterer), X
        names = {"n_clusters", "n_components"} & set(clusterer.get_params(deep=False))
        clusterer.set_params(**dict.fromkeys(names, self.n_stages))
        # A FrozenEstimator must be given a y, if only None.
        self.clusterer_ = clusterer.fit(members, None)
        centres = getattr(self.clusterer_, "cluster_centers_", getattr(self.clusterer_, "means_", None))
        if centres is None:
            raise TypeError(
                "clusterer must have cluster_centers_ or means_ once fitted, which "
                f"{type(clusterer).__name__} has not; take KMeans, or a GaussianMixture"
            )
        if len(centres) != self.n_stages:
            raise ValueError(
                f"the clusterer found {len(centres)} clusters for n_stages={self.n_stages}; take one whose "
                "n_clusters or n_components can be set"
            )
        self._centres = np.asarray(centres, dtype=X.dtype)
        self._order(euclidean_distances(X, self._centres), score)
        self.cluster_centers_ = self._centres[self.stage_order_]
        return self

    def _distances(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return euclidean_distances(X, self._centres)


class AnomalyStager(HoldsDetector, _Stages, BaseEstimator):
    """Detection and staging at once: which images are anomalous, and how advanced each anomalous image is.

    Parameters
    ----------
    detector : BaseDetector, or FrozenEstimator of one, default=None
        Detector that finds the anomalous images; None is ``AutoEncoder()``. A FrozenEstimator is used as it
        is, any other estimator is cloned and fitted to the rows with y other than -1.
    n_stages : int, default=2
        Number of stages, K in the paper.
    clusterer : clusterer with ``cluster_centers_`` or mixture with ``means_``, default=None
        Clusterer, as in `CentroidStager`.
    pooling : int, default=None
        Side, in pixels, of the squares over which residuals are averaged, as in `ResidualTransformer`.
    random_state : int, RandomState or None, default=None
        Seed of the default clusterer.

    Attributes
    ----------
    detector_ : BaseDetector or FrozenEstimator
        The fitted detector.
    pipeline_ : Pipeline
        Steps ``residual`` and ``stager``, fitted to the anomalous images.
    severity_ : (K,) ndarray
        Severity of each stage, ascending.
    stage_order_ : (K,) int ndarray
        Cluster of each stage.
    n_features_in_ : int
        The detector's ``n_features_in_``.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame of rows.

    Examples
    --------
    >>> from skanomaly import AutoEncoder
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.staging import AnomalyStager
    >>> X = load_chest_xray().images[:64]
    >>> stager = AnomalyStager(AutoEncoder(hidden_size=64, max_epochs=1, random_state=0)).fit(X)
    >>> sorted(set(stager.predict(X).tolist()))
    [0, 1, 2]
    """

    _parameter_constraints = {
        **ResidualTransformer._parameter_constraints,
        **CentroidStager._parameter_constraints,
        "detector": [HasMethods(["fit", "predict"]), None],
    }

    def __init__(self, detector=None, *, n_stages=2, clusterer=None, pooling=None, random_state=None):
        self.detector = detector
        self.n_stages = n_stages
        self.clusterer = clusterer
        self.pooling = pooling
        self.random_state = random_state

    @atomic_fit(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit the detector to normal images, and stage the anomalous ones.

        Parameters
        ----------
        X : array-like
            Images, as the detector takes them.
        y : (n,) array-like, default=None
            Labels: 1 normal, 0 unlabelled, -1 anomalous. Images with -1 are staged. If there are none, the
            images that the detector calls anomalous are staged.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If fewer images are anomalous than there are stages.
        """
        known = y is not None and is_anomalous(y).any()
        if known:
            self._anomalous(is_anomalous(y))  # before the detector is trained
        self._fit_detector(X, y)
        rows = self._anomalous(is_anomalous(y if known else self.detector_.predict(X)))
        # Frozen: the pipeline is fitted to anomalies, from which the detector must not learn.
        residual = ResidualTransformer(FrozenEstimator(self.detector_), pooling=self.pooling)
        stager = CentroidStager(self.clusterer, n_stages=self.n_stages, random_state=self.random_state)
        self.pipeline_ = Pipeline([("residual", residual), ("stager", stager)]).fit(take_rows(X, rows))
        self.stage_order_, self.severity_ = stager.stage_order_, stager.severity_
        self._gaps = stager._gaps
        return self

    def _anomalous(self, anomalous):
        """Indices of the anomalous rows. It is an error if they are fewer than `n_stages`."""
        rows = np.flatnonzero(anomalous)
        if len(rows) < self.n_stages:
            raise ValueError(
                f"n_stages={self.n_stages} needs as many anomalous images at least, got {len(rows)}; give "
                "more, marked by -1 in y"
            )
        return rows

    def predict(self, X):
        """Stage of each image.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        stages : (n,) int ndarray
            0 for images that the detector calls normal, 1 to K for anomalous ones.
        """
        check_is_fitted(self)
        return np.where(self.detector_.predict(X) == -1, super().predict(X), 0)

    def score(self, X, y=None):
        """Distinctness of the stages of the anomalous images; see `CentroidStager.score`.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        y : (n,) array-like, default=None
            Labels. Images with -1 count. If there are none, the images that the detector calls anomalous
            count.

        Returns
        -------
        score : float
            Between 0 and 1, higher is better; nan if no image is anomalous.
        """
        check_is_fitted(self)
        if y is None or not is_anomalous(y).any():
            y = self.detector_.predict(X)
            if not np.any(y == -1):
                return math.nan
        return super().score(X, y)

    def _distances(self, X):
        check_is_fitted(self)
        return self.pipeline_[-1]._distances(self.pipeline_[0].transform(X))


def severity(estimator, X):
    """Severity of images, by the method `severity` of a stager inside a Pipeline, search or FrozenEstimator.

    Parameters
    ----------
    estimator : fitted stager
        Stager, or a Pipeline, search or FrozenEstimator that holds one.
    X : array-like
        Images or rows, as the estimator takes them.

    Returns
    -------
    severity : (n,) float64 ndarray
        Severity of each image or row; higher is worse.
    """
    return call_inside("severity", estimator, X)

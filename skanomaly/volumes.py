"""Volumes: scores, maps and masks of stacks of slices, by a detector that judges slices."""

from collections.abc import Hashable, Iterator
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_consistent_length
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from . import _unwrap
from ._atomic import atomic_fit
from ._finite import limited, refuse_not_finite, unlimited
from ._holder import HoldsDetector
from .base import Drift, calibration_scores, check_rate, conformal_p, rank_threshold, two_samples
from .labels import check_groups, check_labels, warn_without_anomalies

__all__ = ["VolumeDetector"]


class VolumeDetector(HoldsDetector, OutlierMixin, BaseEstimator):
    """Detector of volumes: a detector judges their slices, and the scores of the slices are pooled.

    X holds slices, as any detector takes them, and `groups` says for each slice which volume it is of. The
    slices of a volume need not follow each other, but their order is that of the volume. Results have one
    entry for each volume, in the order in which the volumes first occur in `groups`.

    Parameters
    ----------
    detector : BaseDetector, default=None
        Detector that judges a slice; None is ``AutoEncoder()``. A fitted one in a ``FrozenEstimator`` is
        taken as it is.
    pooling : {"max", "top", "mean"}, default="max"
        Pooling of the scores of a volume's slices: the worst; the mean of the worst `top_fraction`; the mean.
    top_fraction : float, default=0.1
        Share of the slices that count for "top", but at least one slice.
    contamination : float, default=0.1
        Share of the training volumes that `predict` flags, in (0, 0.5].

    Attributes
    ----------
    detector_ : BaseDetector
        Fitted detector of slices.
    offset_ : float
        Threshold of volume scores. `predict` returns -1 where `score_samples` is below it.
    calibration_scores_ : (n,) ndarray
        Anomaly scores of the volumes of the last `calibrate`, ascending. Without a calibration it is absent.

    See Also
    --------
    skanomaly.patches.PatchDetector : The same for windows of large images.

    Notes
    -----
    scikit-learn's estimators return one value for each row of X, and this one returns one for each volume.
    Pipelines whose other steps keep the rows work; searches and ``cross_val_score`` need folds of whole
    volumes, ``GroupKFold``, and a scorer that pools labels, such as `skanomaly.metrics` on `score_samples`.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import FeatureGaussian
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.volumes import VolumeDetector
    >>> slices, groups = load_chest_xray().images[:64], np.repeat(np.arange(8), 8)
    >>> detector = VolumeDetector(FeatureGaussian(backbone="filters")).fit(slices, groups=groups)
    >>> detector.score_samples(slices, groups=groups).shape
    (8,)
    """

    _parameter_constraints = {
        "detector": [HasMethods(["fit", "score_samples"]), None],
        "pooling": [StrOptions({"max", "top", "mean"})],
        "top_fraction": [Interval(Real, 0, 1, closed="right")],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(self, detector=None, *, pooling="max", top_fraction=0.1, contamination=0.1):
        self.detector = detector
        self.pooling = pooling
        self.top_fraction = top_fraction
        self.contamination = contamination

    @atomic_fit(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, groups: ArrayLike | None = None) -> Self:
        """Fit the detector of slices, and set the threshold of volumes.

        Parameters
        ----------
        X : array-like
            Slices, as the detector takes them.
        y : (n,) array-like, default=None
            Labels of the slices: 1 normal, 0 unlabelled, -1 known anomaly. From slices with -1 nothing is
            learned, and volumes with such a slice do not set the threshold.
        groups : (n,) array-like, default=None
            Volume of each slice, a number or a string. None is ``X.groups``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there are no groups, or not one for each slice, or if the detector refuses X or y.
            If the score of a slice that counts is not finite; the message names it. A fit that fails leaves
            the estimator as it was.
        """
        names, members = _volumes(X, groups)
        vars(self).pop("calibration_scores_", None)
        self._fit_detector(X, y)
        normal = np.ones(len(names), dtype=bool)
        if y is not None:
            normal = ~_any(check_labels(y) == -1, len(names), members)
        if not normal.any():
            raise ValueError("every volume has a slice with -1: none is left to set the threshold")
        scores = self._finite_scores(X, normal, members)
        self.offset_ = float(np.percentile(-scores, 100 * self.contamination))
        return self

    def calibrate(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        false_alarm_rate: float = 0.05,
    ) -> Self:
        """Reset the threshold of volumes from normal volumes that the detector was not trained on.

        Parameters
        ----------
        X : array-like
            Slices. Without y all must be normal.
        y : (n,) array-like, default=None
            Labels of the slices. Only volumes whose slices all have 1 are used.
        groups : (n,) array-like, default=None
            Volume of each slice. None is ``X.groups``.
        false_alarm_rate : float, default=0.05
            Expected share of new normal volumes that `predict` will flag, in (0, 1).

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If no volume is normal, or the rate is not between 0 and 1.
            If the score of a slice that counts is not finite; the message names it. A calibration that fails
            leaves the threshold as it was.
        """
        check_rate("false_alarm_rate", false_alarm_rate)
        scores = self._normal_scores(X, y, groups)
        self.offset_ = rank_threshold(scores, false_alarm_rate, "volumes")
        self.calibration_scores_ = np.sort(scores)
        return self

    def score_samples(self, X: ArrayLike, *, groups: ArrayLike | None = None) -> NDArray[np.float64]:
        """Score of each volume.

        Parameters
        ----------
        X : array-like
            Slices of the fitted shape.
        groups : (n,) array-like, default=None
            Volume of each slice. None is ``X.groups``.

        Returns
        -------
        scores : (n_volumes,) float64 ndarray
            Pooled anomaly scores, multiplied by -1: higher is more normal. A volume whose score is beyond
            float32 gets the lowest finite float32.
        """
        check_is_fitted(self)
        names, members = _volumes(X, groups)
        pooled = self._pooled(self._slice_scores(X), len(names), members)
        return -limited(pooled)

    def decision_function(self, X: ArrayLike, *, groups: ArrayLike | None = None) -> NDArray[np.float64]:
        """`score_samples` - ``offset_``; negative where `predict` flags a volume."""
        return self.score_samples(X, groups=groups) - self.offset_

    def predict(
        self, X: ArrayLike, *, groups: ArrayLike | None = None, false_alarm_rate: float | None = None
    ) -> NDArray[np.intp]:
        """Label of each volume: 1 for normal ones, -1 for anomalous ones.

        Parameters
        ----------
        X : array-like
            Slices of the fitted shape.
        groups : (n,) array-like, default=None
            Volume of each slice. None is ``X.groups``.
        false_alarm_rate : float, default=None
            Share of new normal volumes that may be flagged, as in `BaseDetector.predict`.

        Returns
        -------
        labels : (n_volumes,) int ndarray
        """
        if false_alarm_rate is None:
            return np.where(self.decision_function(X, groups=groups) >= 0, 1, -1)
        check_rate("false_alarm_rate", false_alarm_rate)
        return np.where(self.p_value(X, groups=groups) <= false_alarm_rate, -1, 1)

    def fit_predict(
        self, X: ArrayLike, y: ArrayLike | None = None, *, groups: ArrayLike | None = None
    ) -> NDArray[np.intp]:
        """`fit`, then `predict` of the same slices."""
        return self.fit(X, y, groups=groups).predict(X, groups=groups)

    def p_value(self, X: ArrayLike, *, groups: ArrayLike | None = None) -> NDArray[np.float64]:
        """p-value (n_volumes,) of each volume among those of `calibrate`, as `BaseDetector.p_value`."""
        known = calibration_scores(self, "p_value", "volumes")
        return conformal_p(known, -self.score_samples(X, groups=groups))

    def drift(self, X: ArrayLike, y: ArrayLike | None = None, *, groups: ArrayLike | None = None) -> Drift:
        """Whether new normal volumes are like those of the calibration, as `BaseDetector.drift`."""
        return two_samples(self._normal_scores(X, y, groups), calibration_scores(self, "drift", "volumes"))

    def volume_names(self, X: ArrayLike, *, groups: ArrayLike | None = None) -> list[Hashable]:
        """Names of the volumes, in the order of all results."""
        return _volumes(X, groups)[0]

    def iter_maps(
        self, X: ArrayLike, *, groups: ArrayLike | None = None
    ) -> Iterator[tuple[Hashable, NDArray[np.float32]]]:
        """Yield the name and the anomaly map (n_slices, H, W) of each volume; one is in memory at a time.

        Parameters
        ----------
        X : array-like
            Slices of the fitted shape.
        groups : (n,) array-like, default=None
            Volume of each slice. None is ``X.groups``.
        """
        for name, slices in self._each(X, groups):
            yield name, _unwrap.anomaly_map(self.detector_, slices)

    def iter_masks(
        self, X: ArrayLike, *, groups: ArrayLike | None = None, **options: Any
    ) -> Iterator[tuple[Hashable, NDArray[np.bool_]]]:
        """Yield the name and the mask (n_slices, H, W) of each volume; options are those of `segment`."""
        for name, slices in self._each(X, groups):
            yield name, _unwrap.segment(self.detector_, slices, **options)

    def anomaly_map(
        self, X: ArrayLike, *, groups: ArrayLike | None = None
    ) -> dict[Hashable, NDArray[np.float32]]:
        """Anomaly maps (n_slices, H, W) of all volumes by name; `iter_maps` holds one at a time."""
        return dict(self.iter_maps(X, groups=groups))

    def segment(
        self, X: ArrayLike, *, groups: ArrayLike | None = None, **options: Any
    ) -> dict[Hashable, NDArray[np.bool_]]:
        """Masks (n_slices, H, W) of all volumes by name; `iter_masks` holds one at a time."""
        return dict(self.iter_masks(X, groups=groups, **options))

    def _each(self, X, groups):
        check_is_fitted(self)
        names, members = _volumes(X, groups)
        order = np.argsort(members, kind="stable")
        for name, rows in zip(names, np.split(order, np.cumsum(np.bincount(members))[:-1])):
            if rows[-1] - rows[0] == len(rows) - 1:
                rows = slice(rows[0], rows[-1] + 1)  # a lazy X may know no other rows
            yield name, X[rows] if hasattr(X, "shape") else [X[k] for k in np.arange(len(X))[rows]]

    def _slice_scores(self, X):
        """Anomaly score of each slice, infinite where it is beyond float32: a mean must not hide it."""
        return unlimited(-self.detector_.score_samples(X))

    def _pooled(self, scores, n, members):
        """Anomaly score (n,) of each volume."""
        return _pool(scores, n, members, self.pooling, self.top_fraction)

    def _finite_scores(self, X, counts, members):
        """Anomaly scores of the volumes that count, all of whose slices have finite ones."""
        scores, rows = self._slice_scores(X), np.flatnonzero(counts[members])
        refuse_not_finite("the score", scores[rows], rows=rows)
        return self._pooled(scores, len(counts), members)[counts]

    def _normal_scores(self, X, y, groups):
        """Anomaly scores of the normal volumes."""
        check_is_fitted(self)
        names, members = _volumes(X, groups)
        if y is None:
            return self._finite_scores(X, np.ones(len(names), dtype=bool), members)
        y = check_labels(y)
        check_consistent_length(members, y)
        warn_without_anomalies(y, "of the slices, labelled {labels}, only those with 1 were taken for normal")
        normal = ~_any(y != 1, len(names), members)
        if not normal.any():
            raise ValueError("no volume is normal: each has a slice whose label is not 1")
        return self._finite_scores(X, normal, members)


def _volumes(X, groups):
    """Names of the volumes by first occurrence, and the number of the volume of each slice (n,)."""
    if groups is None:
        groups = getattr(X, "groups", None)
    if groups is None:
        raise ValueError(
            "VolumeDetector needs the volume of each slice: give groups=, one number or name a slice, or an "
            "X with the attribute groups"
        )
    groups = check_groups(groups)
    check_consistent_length(X, groups)
    numbers: dict = {}
    members = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.intp)
    return list(numbers), members


def _any(flags, n, members):
    """Whether any slice of each volume has the flag."""
    return np.bincount(members, weights=flags, minlength=n) > 0


def _pool(scores, n, members, pooling, top_fraction):
    counts = np.bincount(members, minlength=n)
    if pooling == "mean":
        return np.bincount(members, weights=scores, minlength=n) / counts
    # Volume by volume, worst slices first: then the place of a slice in its volume is its rank.
    order = np.lexsort((-scores, members))
    first = np.cumsum(counts) - counts
    if pooling == "max":
        return scores[order[first]]
    ranks = np.arange(len(scores)) - np.repeat(first, counts)
    n_top = np.maximum(1, np.ceil(top_fraction * counts - 1e-9)).astype(int)
    top = order[ranks < np.repeat(n_top, counts)]
    return np.bincount(members[top], weights=scores[top], minlength=n) / n_top

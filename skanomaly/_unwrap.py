"""Estimators that hold a detector, and reaching through them for its maps, masks and reconstructions."""

import functools

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from .detectors.autoencoder import AutoEncoder


def unwrap(estimator, X):
    """The detector inside `estimator`, and X as that detector sees it."""
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            if len(estimator) > 1:
                X = estimator[:-1].transform(X)
            estimator = estimator[-1]
        elif hasattr(estimator, "refit"):
            check_is_fitted(estimator)
            if not hasattr(estimator, "best_estimator_"):
                raise ValueError(
                    f"{type(estimator).__name__} keeps no fitted detector with refit=False; set refit=True"
                )
            estimator = estimator.best_estimator_
        else:
            return estimator, X


def _call(method, estimator, X, **options):
    detector, X = unwrap(estimator, X)
    if not hasattr(detector, method):
        raise TypeError(f"{type(detector).__name__} has no {method}: give a detector, or what holds one")
    return getattr(detector, method)(X, **options)


def anomaly_map(estimator, X, *, out=None):
    """`anomaly_map` of the detector inside a Pipeline, a search or a FrozenEstimator.

    Parameters
    ----------
    estimator : fitted detector
        Or a Pipeline, search or FrozenEstimator that holds one.
    X : array-like
        As the estimator takes it.
    out : array-like of shape (n, H, W), default=None
        Where to write the maps.

    Returns
    -------
    maps : (n, H, W) float32 ndarray, or `out`
        Higher is more anomalous.
    """
    return _call("anomaly_map", estimator, X, out=out)


def segment(estimator, X, **options):
    """`segment` of the detector inside a Pipeline, a search or a FrozenEstimator.

    Parameters
    ----------
    estimator : fitted detector
        Or a Pipeline, search or FrozenEstimator that holds one.
    X : array-like
        As the estimator takes it.
    **options : dict
        As the detector's `segment`.

    Returns
    -------
    masks : (n, H, W) bool ndarray, or ``out``
    """
    return _call("segment", estimator, X, **options)


def reconstruct(estimator, X, *, out=None):
    """`reconstruct` of the detector inside a Pipeline, a search or a FrozenEstimator.

    Parameters
    ----------
    estimator : fitted detector
        Or a Pipeline, search or FrozenEstimator that holds one.
    X : array-like
        As the estimator takes it.
    out : array-like, default=None
        Where to write the images.

    Returns
    -------
    images : float32 ndarray, or `out`
        In layout and units of what the steps before the detector return.
    """
    return _call("reconstruct", estimator, X, out=out)


def all_or_nothing(fit):
    """A `fit` that, where it fails, leaves the estimator as it was."""

    @functools.wraps(fit)
    def fit_or_restore(self, *args, **kwargs):
        before = dict(vars(self))
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return fit_or_restore


def take_rows(X, rows):
    """Rows of images in any container that a detector takes."""
    if hasattr(X, "iloc"):
        return X.iloc[rows]
    if isinstance(X, (list, tuple)):
        return [X[i] for i in rows]
    if hasattr(X, "__array__"):
        return np.asarray(X)[rows]
    return np.concatenate([np.asarray(X[i : i + 1]) for i in rows])


def normal_rows(X, y):
    """X without known anomalies (y == -1)."""
    if y is None or not (anomalous := column_or_1d(y) == -1).any():
        return X
    if anomalous.all():
        raise ValueError("y leaves no normal images: all are -1; give some with 1 (normal)")
    return take_rows(X, np.flatnonzero(~anomalous))


class HoldsDetector:
    """Fits a detector to the rows that are not known anomalies; what X must be is the detector's to say."""

    def _fit_detector(self, X, y):
        if y is not None:
            check_consistent_length(X, column_or_1d(y))
        if isinstance(self.detector, FrozenEstimator):
            check_is_fitted(self.detector)
            self.detector_ = self.detector
        else:
            self.detector_ = (AutoEncoder() if self.detector is None else clone(self.detector)).fit(X, y)

    @property
    def n_features_in_(self):
        return self.detector_.n_features_in_

    @property
    def feature_names_in_(self):
        return self.detector_.feature_names_in_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        if tags.transformer_tags is not None:
            tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

"""Estimators that hold a detector as a parameter."""

from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_consistent_length

from .base import tells_unlabelled
from .detectors.autoencoder import AutoEncoder
from .labels import check_labels, warn_without_anomalies


class HoldsDetector:
    """Mixin that fits a clone of `detector`, which decides what X may be and leaves out known anomalies."""

    def _fit_detector(self, X, y):
        detector = AutoEncoder() if self.detector is None else self.detector
        # A frozen detector does not check y.
        if y is not None:
            check_consistent_length(X, check_labels(y))
        if isinstance(detector, FrozenEstimator):
            done, tells = "all rows, labelled {labels}, count as normal", tells_unlabelled(detector)
            warn_without_anomalies(y, done, tells_unlabelled=tells)
        # No case for FrozenEstimator: it is its own clone, and its fit only checks that it is fitted.
        self.detector_ = clone(detector).fit(X, y)

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

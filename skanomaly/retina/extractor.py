"""Base of the layer extractors."""

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from .._arrays import refuse_masked


class LayerExtractor(BaseEstimator):
    """Base of estimators whose `predict` returns the layers of scans, 1 to ``n_layers_`` by depth."""

    def _check(self, X, reset, name="X"):
        refuse_masked(X, name)
        X = validate_data(self, X, reset=reset, allow_nd=True, dtype=[np.float64, np.float32])
        if X.ndim == 2:
            X = X[:, :, None]
        if X.ndim != 3:
            raise ValueError(f"X must hold grey scans (n, H, W), got shape {X.shape}")
        return X

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

"""Estimators that segment: each holds a detector, and makes masks from its maps or reconstructions."""

from numbers import Integral, Real

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from . import segmentation
from ._atomic import atomic_fit
from ._finite import check_learned
from ._holder import HoldsDetector
from ._rows import normal_rows
from ._unwrap import anomaly_map
from .retina.segmenter import LayerwiseSegmenter

__all__ = ["LayerwiseSegmenter", "ResidualSegmenter"]


class ResidualSegmenter(HoldsDetector, BaseEstimator):
    """Segmentation by a threshold on the anomaly map.

    Parameters
    ----------
    detector : BaseDetector, Pipeline that ends in one, or FrozenEstimator of either, default=None
        Detector whose maps are used; None is ``AutoEncoder()``. A FrozenEstimator is used as it is, any other
        estimator is cloned and fitted to the rows with y other than -1.
    level : {"pixel", "block"}, default="pixel"
        Values that are compared with the threshold: single pixels, or means of square blocks of pixels.
    block_size : int, default=8
        Side of a block in pixels.
    quantile : float, default=0.99
        Quantile that sets the threshold, of all pixels in maps of the rows with y other than -1.
    median_size : int, default=None
        Side, in pixels, of a median filter that is applied to the maps before the threshold; only for
        ``level="pixel"``.
    fill_holes : bool, default=True
        Whether pixels that are enclosed by flagged pixels are flagged, too.
    min_size : int, default=0
        Least number of pixels in a flagged region; smaller regions are dropped.

    Attributes
    ----------
    detector_ : BaseDetector, Pipeline or FrozenEstimator
        The fitted detector.
    threshold_ : float
        Threshold of the maps.
    n_features_in_ : int
        The detector's ``n_features_in_``.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame of rows.

    See Also
    --------
    LayerwiseSegmenter : Segmenter for lesions of the retina whose grey values are normal elsewhere in a scan.

    Examples
    --------
    >>> from skanomaly import AutoEncoder
    >>> from skanomaly.datasets import make_oct
    >>> from skanomaly.segmenters import ResidualSegmenter
    >>> normal, ill = make_oct(20, random_state=0), make_oct(5, kinds=("drusen",), random_state=1)
    >>> segmenter = ResidualSegmenter(AutoEncoder(hidden_size=64, max_epochs=1)).fit(normal.images)
    >>> segmenter.predict(ill.images).shape
    (5, 128, 128)
    """

    _parameter_constraints = {
        "detector": [HasMethods(["fit", "score_samples"]), None],
        "level": [StrOptions({"pixel", "block"})],
        "block_size": [Interval(Integral, 1, None, closed="left")],
        "quantile": [Interval(Real, 0, 1, closed="neither")],
        "median_size": [Interval(Integral, 1, None, closed="left"), None],
        "fill_holes": ["boolean"],
        "min_size": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        detector=None,
        *,
        level="pixel",
        block_size=8,
        quantile=0.99,
        median_size=None,
        fill_holes=True,
        min_size=0,
    ):
        self.detector = detector
        self.level = level
        self.block_size = block_size
        self.quantile = quantile
        self.median_size = median_size
        self.fill_holes = fill_holes
        self.min_size = min_size

    @atomic_fit(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit the detector, unless it is frozen, and find the threshold.

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
        # Not the detector's own pixel_offset_: a search over `quantile` need not train the detector again.
        threshold = np.quantile(self._maps(normal_rows(X, y)), self.quantile)
        check_learned(threshold_=threshold)
        self.threshold_ = float(threshold)
        return self

    def _maps(self, X):
        maps = anomaly_map(self.detector_, X)
        return maps if self.level == "pixel" else segmentation.block_means(maps, self.block_size)

    def predict(self, X):
        """Masks of the anomalous pixels.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        masks : (n, H, W) bool ndarray
            True where anomalous.
        """
        check_is_fitted(self)
        return segmentation.residual_mask(
            self._maps(X),
            self.threshold_,
            # A median of blocks would be one of few values, each repeated.
            median_size=self.median_size if self.level == "pixel" else None,
            fill_holes=self.fill_holes,
            min_size=self.min_size,
        )

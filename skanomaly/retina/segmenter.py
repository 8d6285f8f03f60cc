"""Segmentation of lesions that break the layers of the retina."""

from numbers import Integral, Real

from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from .._atomic import atomic_fit
from .._holder import HoldsDetector
from .._rows import normal_rows
from .._unwrap import unwrap
from ..base import open_images
from ..segmentation import residual_mask
from .comparison import check_depth_order, layer_thresholds, layerwise_mask
from .graph import GraphLayerExtractor


class LayerwiseSegmenter(HoldsDetector, BaseEstimator):
    """Segmentation by layers: masks of pixels whose layers in a scan and in its reconstruction differ.

    A lesion hardly shows in the residual if its grey values are normal elsewhere in the scan. But it breaks
    the layers. Each layer has a code, a number in [0, 1] that goes up with depth. Retina without a layer has
    the code 3, and the background 7. A pixel is flagged if its codes in the scan and in the reconstruction
    differ by more than `v_low` and by less than `v_high`.

    Parameters
    ----------
    detector : BaseDetector, Pipeline that ends in one, or FrozenEstimator of either, default=None
        Detector that reconstructs; None is ``AutoEncoder()``. A FrozenEstimator is used as it is, any other
        estimator is cloned and fitted to the rows with y other than -1.
    layer_extractor : layer extractor, or FrozenEstimator of one, default=None
        Estimator that has ``n_layers_``, L, and whose `predict` returns integer layers (n, H, W) in depth
        order: 0 above the retina, 1 to L, L + 1 behind it, and -1 in a gap. None is
        ``GraphLayerExtractor()``. An extractor that learns from labelled layers must be fitted before, and
        given as a FrozenEstimator.
    v_low : float, default=None
        Largest difference of codes that counts as noise. None is 1.5 times the difference between
        neighbouring layers.
    v_high : float, default=None
        Least difference of codes that counts as one between retina and background. None is half-way between
        the largest difference within the retina and the least one between retina and background.
    fill_holes : bool, default=True
        Whether pixels that are enclosed by flagged pixels are flagged, too.
    min_size : int, default=0
        Least number of pixels in a flagged region; smaller regions are dropped.

    Attributes
    ----------
    detector_ : BaseDetector, Pipeline or FrozenEstimator
        The fitted detector.
    layer_extractor_ : estimator
        The fitted extractor.
    v_low_, v_high_ : float
        Thresholds in use.
    n_features_in_ : int
        The detector's ``n_features_in_``.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame of rows.

    See Also
    --------
    skanomaly.segmentation.layerwise_mask : The comparison by itself.

    References
    ----------
    .. [1] Li, Y., Lao, Q., Kang, Q., Jiang, Z., Du, S., Zhang, S., Li, K. (2023). "Self-supervised anomaly
       detection, staging and segmentation for retinal images". Medical Image Analysis 87, 102805.
       `doi:10.1016/j.media.2023.102805 <https://doi.org/10.1016/j.media.2023.102805>`_

    Examples
    --------
    >>> from skanomaly import AutoEncoder
    >>> from skanomaly.datasets import make_oct
    >>> from skanomaly.segmenters import LayerwiseSegmenter
    >>> normal, ill = make_oct(20, random_state=0), make_oct(5, kinds=("drusen",), random_state=1)
    >>> segmenter = LayerwiseSegmenter(AutoEncoder(hidden_size=64, max_epochs=1)).fit(normal.images)
    >>> segmenter.predict(ill.images).shape
    (5, 128, 128)
    """

    _parameter_constraints = {
        "detector": [HasMethods(["fit", "score_samples"]), None],
        "layer_extractor": [HasMethods(["fit", "predict"]), None],
        "v_low": [Interval(Real, None, None, closed="neither"), None],
        "v_high": [Interval(Real, None, None, closed="right"), None],  # infinity too
        "fill_holes": ["boolean"],
        "min_size": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self, detector=None, layer_extractor=None, *, v_low=None, v_high=None, fill_holes=True, min_size=0
    ):
        self.detector = detector
        self.layer_extractor = layer_extractor
        self.v_low = v_low
        self.v_high = v_high
        self.fill_holes = fill_holes
        self.min_size = min_size

    @atomic_fit(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit detector and layer extractor, unless they are frozen.

        Parameters
        ----------
        X : array-like
            Scans, as the detector takes them.
        y : (n,) array-like, default=None
            Labels: rows with -1 are left out.

        Returns
        -------
        self
        """
        extractor = GraphLayerExtractor() if self.layer_extractor is None else self.layer_extractor
        frozen = isinstance(extractor, FrozenEstimator)
        if not frozen and get_tags(extractor).target_tags.required:
            raise TypeError(
                f"{type(extractor).__name__} learns from labelled layers, which are not given here; fit it "
                "before, and give it as FrozenEstimator(extractor)"
            )
        # Checked before the detector is trained. A threshold of None must wait until the layers are counted.
        if None not in (self.v_low, self.v_high):
            layer_thresholds(1, self.v_low, self.v_high)
        self._fit_detector(X, y)
        # Scans as the detector sees them, after the steps of a Pipeline: reconstructions look like these.
        scans = open_images(*self._reach(normal_rows(X, y))).raw()[:, 0]
        self.layer_extractor_ = extractor = extractor if frozen else clone(extractor).fit(scans)
        if not hasattr(extractor, "n_layers_"):
            raise TypeError("layer_extractor must have n_layers_ once fitted, the number of layers")
        self.v_low_, self.v_high_ = layer_thresholds(extractor.n_layers_, self.v_low, self.v_high)
        check_depth_order(extractor.predict(scans))
        return self

    def _reach(self, X):
        """Detector, and X as the detector sees it."""
        detector, seen = unwrap(self.detector_, X)
        if not hasattr(detector, "reconstruct"):
            raise TypeError(
                f"layers are compared with a reconstruction, which {type(detector).__name__} has not"
            )
        if detector.image_shape_[0] != 1:
            raise ValueError(
                f"layers are those of grey scans, got images of {detector.image_shape_[0]} channels"
            )
        return detector, seen

    def layers(self, X):
        """Layers of scans and of their reconstructions.

        Parameters
        ----------
        X : array-like
            Scans of the fitted shape.

        Returns
        -------
        layers, reconstructed : (n, H, W) int ndarray
            Labels, as `predict` of the extractor returns them.
        """
        check_is_fitted(self)
        detector, seen = self._reach(X)
        images = open_images(detector, seen)
        made = images.layout.to_network(detector.reconstruct(seen))
        return tuple(self.layer_extractor_.predict(scans[:, 0]) for scans in (images.raw(), made))

    def predict(self, X):
        """Masks of pixels whose layers in a scan and in its reconstruction differ.

        Parameters
        ----------
        X : array-like
            Scans of the fitted shape.

        Returns
        -------
        masks : (n, H, W) bool ndarray
            True where anomalous.
        """
        layers, reconstructed = self.layers(X)
        n_layers = self.layer_extractor_.n_layers_
        masks = layerwise_mask(layers, reconstructed, n_layers, v_low=self.v_low_, v_high=self.v_high_)
        return residual_mask(masks.astype(float), 0.5, fill_holes=self.fill_holes, min_size=self.min_size)

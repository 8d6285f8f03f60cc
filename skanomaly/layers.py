"""Layers of a retina in OCT B-scans: from images to integer labels in depth order."""

from numbers import Integral, Real

import numpy as np
from joblib import Parallel, delayed
from scipy import ndimage
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["GraphLayerExtractor"]

#: Of a whole retina at 1/128 of the height of the scan; see `datasets.make_oct`.
THICKNESS = 8, 14, 8, 6, 16, 6, 6
#: What each boundary is, from above: dark to bright (1), or bright to dark (-1).
POLARITY = 1, -1, -1, 1, -1, 1, 1, -1


class GraphLayerExtractor(BaseEstimator):
    """Layers without training: boundaries as shortest paths over vertical gradients.

    The pigment epithelium, the brightest deep band, is found as a path through the scan, and the scan
    flattened to it. Then all boundaries of a column are found together, in their order: the places, top to
    bottom, where the gradients have the right signs and are strongest, and layers are about as thick as they
    should be. Layers cannot cross.

    Parameters
    ----------
    thickness : sequence of L floats, default=(8, 14, 8, 6, 16, 6, 6)
        Expected thickness of the layers from the vitreous inwards, in 1/128 of the height.
    polarity : sequence of L + 1 of {-1, 1}, default=(1, -1, -1, 1, -1, 1, 1, -1)
        Upper end of each layer and lower end of the last: 1 from dark to bright, -1 from bright to dark.
    thickness_weight : float, default=0.3
        How much a layer of twice or half its thickness costs, in standard deviations of the gradient.
    sigma : tuple (vertical, horizontal), default=(1.0, 2.5)
        Of the Gaussian before the gradient, in 1/128 of the height.
    median_size : int, default=7
        Columns of the median filter on the boundaries.
    n_jobs : int, default=None
        Scans at a time, by joblib.

    Attributes
    ----------
    n_layers_ : int
        L.
    n_features_in_ : int
        Height of the scans, or pixels where they are given as rows.
    feature_names_in_ : (n_features_in_,) ndarray
        Where X was a DataFrame of rows.

    See Also
    --------
    skanomaly.LayerwiseSegmenter : Lesions, by comparing layers of a scan and of its reconstruction.

    Notes
    -----
    The idea is that of Chiu et al. [1]_; here the boundaries of a column are found together by dynamic
    programming, which keeps their order, instead of one by one.

    References
    ----------
    .. [1] Chiu, S. J., Li, X. T., Nicholas, P., Toth, C. A., Izatt, J. A., Farsiu, S. (2010). "Automatic
       segmentation of seven retinal layers in SDOCT images congruent with expert manual segmentation".
       Optics Express 18(18), 19413-19428.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.datasets import make_oct
    >>> from skanomaly.layers import GraphLayerExtractor
    >>> scans = make_oct(3, random_state=0)
    >>> extractor = GraphLayerExtractor().fit(scans.images)
    >>> extractor.predict(scans.images).shape
    (3, 128, 128)
    >>> bool(np.abs(extractor.boundaries(scans.images) - scans.boundaries).mean() < 2)
    True
    """

    _parameter_constraints = {
        "thickness": ["array-like"],
        "polarity": ["array-like"],
        "thickness_weight": [Interval(Real, 0, None, closed="left")],
        "sigma": [tuple, list],
        "median_size": [Interval(Integral, 1, None, closed="left")],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        *,
        thickness=THICKNESS,
        polarity=POLARITY,
        thickness_weight=0.3,
        sigma=(1.0, 2.5),
        median_size=7,
        n_jobs=None,
    ):
        self.thickness = thickness
        self.polarity = polarity
        self.thickness_weight = thickness_weight
        self.sigma = sigma
        self.median_size = median_size
        self.n_jobs = n_jobs

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the parameters; nothing is learned.

        Parameters
        ----------
        X : (n, H, W) array-like
            Scans; or rows, each a scan of one pixel's width.
        y : object, default=None
            Ignored.

        Returns
        -------
        self
        """
        self._check(X, reset=True)
        thickness, polarity = np.asarray(self.thickness, float), np.asarray(self.polarity)
        if thickness.ndim != 1 or len(polarity) != len(thickness) + 1 or not (thickness > 0).all():
            raise ValueError(
                "thickness must hold one positive number for each layer, and polarity one sign more, got "
                f"{self.thickness!r} and {self.polarity!r}"
            )
        if not np.isin(polarity, (-1, 1)).all():
            raise ValueError(f"polarity must hold 1 and -1 only, got {self.polarity!r}")
        self.n_layers_ = len(thickness)
        return self

    def boundaries(self, X):
        """Where layers begin.

        Parameters
        ----------
        X : (n, H, W) array-like
            Scans.

        Returns
        -------
        boundaries : (n, L + 1, W) float64 ndarray
            Row of the upper end of layers 1 to L and, last, of what is behind them; from above, not crossing.
        """
        check_is_fitted(self)
        scans = self._check(X, reset=False)
        return np.stack(Parallel(n_jobs=self.n_jobs)(delayed(self._boundaries)(scan) for scan in scans))

    def predict(self, X):
        """Layer of each pixel.

        Parameters
        ----------
        X : (n, H, W) array-like
            Scans.

        Returns
        -------
        layers : (n, H, W) int ndarray
            In depth order: 0 above the retina, 1 to L, L + 1 behind it.
        """
        boundaries = self.boundaries(X)
        rows = np.arange(self._check(X, reset=False).shape[1])[:, None] + 0.5
        return (rows[None, None] >= boundaries[:, :, None]).sum(1)

    def _boundaries(self, scan):
        height, width = scan.shape
        scale = height / 128
        epithelium = ndimage.gaussian_filter1d(_deepest_band(scan, scale).astype(float), 3, mode="nearest")
        shift = np.round(epithelium - epithelium.mean()).astype(int)
        rows = (np.arange(height)[:, None] + shift).clip(0, height - 1)
        flat = np.take_along_axis(scan, rows, axis=0)
        gradient = ndimage.gaussian_filter(flat, np.multiply(self.sigma, scale), order=(1, 0), mode="nearest")
        gradient /= gradient.std() or 1
        places = self._ordered_places(gradient, np.asarray(self.thickness, float) * scale)
        size = min(self.median_size, width)
        return ndimage.median_filter(places.astype(float), (1, size), mode="nearest") + shift + 0.5

    def _ordered_places(self, gradient, thickness):
        """Rows (L + 1, W) with the largest sum of signed gradients, less what odd thicknesses cost."""
        height = len(gradient)
        step = np.arange(height) - np.arange(height)[:, None]  # from row to row
        best, came_from = self.polarity[0] * gradient, []
        for expected, sign in zip(thickness, self.polarity[1:]):
            cost = self.thickness_weight * np.abs(np.log2(np.maximum(step, 1) / expected))
            # No layer is thinner than two pixels: one edge is not two boundaries.
            total = best[:, None] - np.where(step < 2, np.inf, cost)[:, :, None]
            came_from.append(total.argmax(0))
            best = np.take_along_axis(total, came_from[-1][None], axis=0)[0] + sign * gradient
        places = [best.argmax(0)]
        for origin in reversed(came_from):
            places.insert(0, np.take_along_axis(origin, places[0][None], axis=0)[0])
        return np.array(places)

    def _check(self, X, reset):
        X = validate_data(self, X, reset=reset, allow_nd=True, dtype=[np.float64, np.float32])
        if X.ndim == 2:
            X = X[:, :, None]
        if X.ndim != 3:
            raise ValueError(f"X must hold grey scans (n, H, W), got shape {X.shape}")
        return X

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.no_validation = False
        return tags


def _deepest_band(scan, scale):
    """Row of the pigment epithelium in each column: bright, with most of the light above it, and smooth."""
    bright = ndimage.gaussian_filter(scan, (2 * scale, 4 * scale), mode="nearest")
    light = np.abs(scan)
    share = np.cumsum(light, axis=0) / np.maximum(light.sum(0), np.finfo(scan.dtype).tiny)
    return _best_path(bright * share, reach=2)


def _best_path(reward, reach):
    """Row in each column of the path from left to right that collects most, `reach` rows a step at most."""
    height, width = reward.shape
    best, came_from = reward[:, 0], np.empty((width, height), dtype=int)
    for column in range(1, width):
        padded = np.pad(best, reach, constant_values=-np.inf)
        near = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
        step = near.argmax(1)
        came_from[column] = np.arange(height) + step - reach
        best = near[np.arange(height), step] + reward[:, column]
    path = np.empty(width, dtype=int)
    path[-1] = best.argmax()
    for column in range(width - 1, 0, -1):
        path[column - 1] = came_from[column, path[column]]
    return path

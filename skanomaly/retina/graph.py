"""Layers without training: their boundaries are found by dynamic programming."""

from numbers import Integral, Real

import numpy as np
from joblib import Parallel, delayed
from scipy import ndimage
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from .._atomic import atomic_fit
from .comparison import NO_LAYER
from .extractor import LayerExtractor

#: Thickness of seven layers, in 1/128 of the height of the scan; see `datasets.make_oct`.
THICKNESS = 8, 14, 8, 6, 16, 6, 6
#: Sign of the gradient at each boundary, from above: dark to bright (1), or bright to dark (-1).
POLARITY = 1, -1, -1, 1, -1, 1, 1, -1
#: Factors by which all layers of a scan may be thinner or thicker together.
SCALES = np.geomspace(0.3, 1.2, 11)
#: Row of the pigment epithelium in a flattened scan, as a share of the scan's height.
EPITHELIUM = 5 / 8
#: Shares of a scan's range of grey values: pixels this near to its maximum are white, to its minimum black.
WHITE, BLACK = 0.03, 0.01


class GraphLayerExtractor(LayerExtractor):
    """Layers without training: boundaries are found in vertical gradients by dynamic programming.

    First the pigment epithelium, the brightest deep band, is found as a path from column to column, and the
    scan is flattened: each column is moved up or down until the path is level. Then the mean of the flattened
    columns shows how thick the retina is. Last, all boundaries of a column are found together and in order,
    at rows where gradients of the right signs are strong and layers have about their expected thickness.
    Layers cannot cross, but they may have gaps: fluid, about as dark as the vitreous above the retina,
    belongs to no layer. White or black margins above and below a scan, which registered or padded scans have,
    are ignored.

    Parameters
    ----------
    thickness : sequence of L floats, default=(8, 14, 8, 6, 16, 6, 6)
        Expected thickness of the layers from the vitreous inwards, in 1/128 of the height of a scan. The
        ratios matter most, because all layers together may be 0.3 to 1.2 times as thick.
    polarity : sequence of L + 1 of {-1, 1}, default=(1, -1, -1, 1, -1, 1, 1, -1)
        Signs of the gradient at the upper end of each layer and at the lower end of the last: 1 from dark to
        bright, -1 from bright to dark.
    thickness_weight : float, default=0.3
        Cost of a layer of twice or half its expected thickness, in standard deviations of the gradient.
    sigma : tuple (vertical, horizontal), default=(1.0, 2.5)
        Standard deviations of the Gaussian that smooths a scan for the gradient, in 1/128 of its height.
    median_size : int, default=7
        Width of the median filter that smooths the boundaries, in columns.
    gaps : bool, default=True
        Whether dark pixels of the retina get the label -1 (no layer) instead of that of the layer around
        them. Dark is below the grey value one third of the way from the vitreous to the darkest layer.
    n_jobs : int, default=None
        Number of scans that joblib processes at a time.

    Attributes
    ----------
    n_layers_ : int
        Number of layers, L.
    n_features_in_ : int
        Height of the scans, or number of pixels of a scan that is given as a row.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame of rows.

    See Also
    --------
    UNetLayerExtractor : Extractor that learns from labelled layers.
    skanomaly.segmenters.LayerwiseSegmenter : Lesions, by comparing layers of a scan and its reconstruction.

    Notes
    -----
    The idea is that of Chiu et al. [1]_, who find boundaries one by one, as shortest paths through a graph.
    Here the boundaries of a column are found together by dynamic programming, which keeps their order. Seven
    layers need a retina of 30 pixels or more. A thinner retina has room for three layers, ``thickness=(24,
    16, 12), polarity=(1, -1, 1, -1)``: the inner retina, the outer nuclear layer, and everything from the
    photoreceptor segments to the pigment epithelium.

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
        "gaps": ["boolean"],
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
        gaps=True,
        n_jobs=None,
    ):
        self.thickness = thickness
        self.polarity = polarity
        self.thickness_weight = thickness_weight
        self.sigma = sigma
        self.median_size = median_size
        self.gaps = gaps
        self.n_jobs = n_jobs

    @atomic_fit(prefer_skip_nested_validation=True)
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
        sigma = np.asarray(self.sigma)
        if sigma.shape != (2,) or sigma.dtype.kind not in "if" or (sigma < 0).any():
            raise ValueError(f"sigma must hold two numbers, (vertical, horizontal), got {self.sigma!r}")
        if thickness.shape != (len(polarity) - 1,) or not len(thickness) or not (thickness > 0).all():
            raise ValueError(
                "thickness must hold one positive number for each layer, and polarity one sign more, got "
                f"{self.thickness!r} and {self.polarity!r}"
            )
        if not np.isin(polarity, (-1, 1)).all():
            raise ValueError(f"polarity must hold 1 and -1 only, got {self.polarity!r}")
        self.n_layers_ = len(thickness)
        return self

    def boundaries(self, X):
        """Boundaries between layers.

        Parameters
        ----------
        X : (n, H, W) array-like
            Scans.

        Returns
        -------
        boundaries : (n, L + 1, W) float64 ndarray
            Rows of the upper ends of layers 1 to L and of the lower end of the last; they do not cross.
        """
        return np.stack(self._each(self._boundaries, X))

    def predict(self, X):
        """Layer of each pixel.

        Parameters
        ----------
        X : (n, H, W) array-like
            Scans.

        Returns
        -------
        layers : (n, H, W) int ndarray
            Labels in depth order: 0 above the retina, 1 to L in its layers, L + 1 behind it; -1 for retina
            without a layer.
        """
        return np.stack(self._each(self._layers, X))

    def flatten(self, X):
        """Scans with the retina straightened and white or black margins filled in, which are easier to learn.

        Parameters
        ----------
        X : (n, H, W) array-like
            Scans.

        Returns
        -------
        flat : (n, H, W) ndarray
            Scans with each column moved up or down until the pigment epithelium lies at 5/8 of the height.
            Missing pixels, and white or black margins, get the value of the nearest pixel; a black margin
            above stays dark. Grey values and dtype are those of X.
        """
        return np.stack([flat for flat, _ in self._each(_flattened, X)]).astype(np.asarray(X).dtype)

    def _each(self, read, X):
        check_is_fitted(self)
        scans = self._check(X, reset=False)
        return Parallel(n_jobs=self.n_jobs)(delayed(read)(scan) for scan in scans)

    def _layers(self, scan):
        rows = np.arange(len(scan))[:, None] + 0.5
        layers = (rows[None] >= self._boundaries(scan)[:, None]).sum(0)
        if self.gaps:
            layers[_gaps(scan, layers, self.n_layers_)] = NO_LAYER
        return layers

    def _boundaries(self, scan):
        height, width = scan.shape
        scale = height / 128
        flat, shift = _flattened(scan)
        gradient = ndimage.gaussian_filter(flat, np.multiply(self.sigma, scale), order=(1, 0), mode="nearest")
        gradient /= gradient.std() or 1
        # The mean column has little noise: its retina is found at any thickness.
        profile = gradient.mean(1, keepdims=True)
        profile /= profile.std() or 1
        thickness = np.asarray(self.thickness, float) * scale
        fits = [(*self._ordered_places(profile, thickness * s), s) for s in SCALES]
        places, _, fitting = max(fits, key=lambda fit: fit[1])
        # Edges that lie far above or below the retina of the mean column do not belong to the retina.
        first, last = places[[0, -1], 0]
        reach = (last - first) // 2
        gradient[: max(0, first - reach)] = 0
        gradient[last + reach :] = 0
        places, _ = self._ordered_places(gradient, thickness * fitting)
        size = min(self.median_size, width)
        return ndimage.median_filter(places.astype(float), (1, size), mode="nearest") + shift + 0.5

    def _ordered_places(self, gradient, thickness):
        """Rows (L + 1, W) with the largest sum of signed gradients minus costs of thickness, and that sum."""
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
        return np.array(places), best.max(0).sum()


def _flattened(scan):
    """Scan with margins filled and columns moved, and by how many rows each was moved (up, if positive)."""
    height = len(scan)
    scan = _without_margins(scan, height / 128)
    band = _deepest_band(scan, height / 128).astype(float)
    shift = np.round(ndimage.gaussian_filter1d(band, 3, mode="nearest") - EPITHELIUM * height).astype(int)
    rows = (np.arange(height)[:, None] + shift).clip(0, height - 1)
    return np.take_along_axis(scan, rows, axis=0), shift


def _without_margins(scan, scale):
    """Scan whose white or black margins above and below are replaced by the nearest pixels.

    A black margin above may be vitreous: it becomes dark, however bright the nearest pixels are.
    """
    low, high = scan.min(), scan.max()
    span, until = high - low, np.logical_and.accumulate
    black, white = scan <= low + BLACK * span, scan >= high - WHITE * span
    extreme = ndimage.binary_dilation(black | white)

    def wider(margin):
        # The edge of a margin is blurred, and would be the strongest gradient of the scan.
        return ndimage.binary_dilation(margin, iterations=round(4 * scale) or 1)

    margin = wider(until(extreme) | until(extreme[::-1])[::-1])
    if margin.all() or not margin.any():
        return scan
    nearest = ndimage.distance_transform_edt(margin, return_distances=False, return_indices=True)
    filled = scan[tuple(nearest)]
    dark = np.quantile(scan[~margin], 0.1)
    above = wider(until(ndimage.binary_dilation(black)))
    return np.where(above, np.minimum(filled, np.maximum(scan, dark)), filled)


def _gaps(scan, layers, n_layers):
    """Mask of the retina that is about as dark as the vitreous above it."""
    scan = ndimage.gaussian_filter(scan, len(scan) / 128)
    median = {layer: np.median(scan[layers == layer]) for layer in np.unique(layers)}
    vitreous = median.get(0, np.inf)
    darkest = min((value for layer, value in median.items() if 0 < layer <= n_layers), default=-np.inf)
    if vitreous >= darkest:
        return np.zeros(scan.shape, dtype=bool)
    dark = (layers > 0) & (layers <= n_layers) & (scan < vitreous + (darkest - vitreous) / 3)
    return ndimage.binary_opening(dark)


def _deepest_band(scan, scale):
    """Row of the pigment epithelium in each column: a smooth path through bright pixels below others."""
    light = scan - scan.min()
    bright = ndimage.gaussian_filter(light, (2 * scale, 4 * scale), mode="nearest")
    share = np.cumsum(light, axis=0) / np.maximum(light.sum(0), np.finfo(scan.dtype).tiny)
    return _best_path(bright * share, reach=2)


def _best_path(reward, reach):
    """Row in each column of the path with the largest sum of rewards; a step is at most `reach` rows."""
    rows = np.arange(len(reward))
    best, came_from = reward[:, 0], []
    for column in reward.T[1:]:
        padded = np.pad(best, reach, constant_values=-np.inf)
        near = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
        came_from.append(rows + near.argmax(1) - reach)
        best = near.max(1) + column
    path = [best.argmax()]
    for origin in reversed(came_from):
        path.insert(0, origin[path[0]])
    return np.array(path)

"""Steps before a detector: transformers from images to images, for a Pipeline.

Steps that move pixels bring maps and masks back: `skanomaly.anomaly_map` and `skanomaly.segment` of a fitted
Pipeline return them in the frame of the images that the Pipeline was given.
"""

from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from ._atomic import atomic_fit
from ._containers import holds_tensors, read_container
from ._finite import check_learned
from ._format import Layout, check_X, refuse_one_image
from ._images import blocks, refuse_non_finite
from ._parameters import constraints_of, fill_docstring, pair
from .io._pixels import nearest, resize
from .labels import training_rows, warn_without_anomalies

__all__ = ["CropToForeground", "LocalContrast", "MatchHistogram", "Resize"]

_SIZE = [Interval(Integral, 1, None, closed="left"), tuple, list, None]
_SHARE = [Interval(Real, 0, 1, closed="left")]


class _ImageStep(TransformerMixin, BaseEstimator):
    """Base of transformers from images to images, in the layout of X. A subclass writes `_change`."""

    #: Whether labels matter to the step.
    _learns = False

    _parameter_constraints: dict = {}
    channel_axis: Any
    image_shape: Any

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        names = ["channel_axis", "image_shape"]
        cls._parameter_constraints = constraints_of(names, cls._parameter_constraints)
        cls.__doc__ = fill_docstring(cls.__doc__, names, judges=False, trained=False, steps={}, layers={})

    @atomic_fit(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn the layout of X, and what the step needs of normal images.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C), (n, C, H, W) or (n, d)
            Images, or rows, in any container that a detector takes.
        y : (n,) array-like, default=None
            Labels: from rows with -1 nothing is learned.

        Returns
        -------
        self
        """
        tensor = holds_tensors(X)
        images = check_X(read_container(X), self, fitting=True)
        self._layout = Layout.of(images.shape, self.channel_axis, self.image_shape, tensor=tensor)
        used, _ = training_rows(y, images.shape[0])
        if self._learns:
            warn_without_anomalies(y, "all rows, labelled {labels}, are learned as normal")
        self._learn(image for image, counts in zip(_each(images, self._layout), used) if counts)
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Change images.

        Parameters
        ----------
        X : array-like
            Images with the channels of those of the fit, of any one size.

        Returns
        -------
        images : ndarray
            Changed images, in the layout of X.
        """
        images, layout = self._open(X)
        return layout.from_network(np.stack([self._change(image) for image in _each(images, layout)]))

    def _open(self, X):
        """X as an array or a lazy source, and its layout."""
        check_is_fitted(self)
        X = read_container(X)
        shape = getattr(X, "shape", ())
        if len(shape) == 2:
            # Images may have any size, also that of X, which would else be read as rows.
            refuse_one_image(shape, replace(self._layout, image_shape=(self._layout.image_shape[0], *shape)))
        X = check_X(X, self, fitting=False)
        layout = Layout.of(X.shape, self.channel_axis, self.image_shape, known=True)
        if layout.image_shape[0] != self._layout.image_shape[0]:
            fitted = self._layout.image_shape[0]
            raise ValueError(f"X must have {fitted} channels, as in fit, got {layout.image_shape[0]}")
        return X, layout

    def _learn(self, images):
        """Learn from an iterable of images (C, H, W), none of them a known anomaly."""
        for _ in images:  # NaN is found
            pass

    def _change(self, image):
        """Image (C, h, w) made of an image (C, H, W)."""
        raise NotImplementedError

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_layout")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


class Resize(_ImageStep):
    """Step that brings images to one size, and maps back to the size that the images had.

    Parameters
    ----------
    size : int or (height, width), default=64
        Size of the images that come out. Interpolation is linear, after a filter against aliasing.
    {parameters}

    Examples
    --------
    >>> import skanomaly
    >>> from sklearn.pipeline import make_pipeline
    >>> from skanomaly import FeatureGaussian
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.preprocessing import Resize
    >>> X = load_chest_xray().images[:32]
    >>> detector = make_pipeline(Resize((40, 48)), FeatureGaussian(backbone="filters")).fit(X)
    >>> detector[0].transform(X).shape, skanomaly.anomaly_map(detector, X).shape
    ((32, 40, 48), (32, 64, 64))
    """

    _parameter_constraints = {"size": _SIZE[:-1]}

    def __init__(self, size=64, *, channel_axis="auto", image_shape=None):
        self.size = size
        self.channel_axis = channel_axis
        self.image_shape = image_shape

    def _change(self, image):
        return _resize(image, pair(self.size, "size"))

    def restore_maps(self, maps: ArrayLike, X: ArrayLike) -> NDArray[Any]:
        """Bring maps or masks back to the frame of X.

        Parameters
        ----------
        maps : (n, h, w) array
            Maps of the images that `transform` makes of X; a bool array holds masks.
        X : array-like
            Images, as `transform` took them.

        Returns
        -------
        maps : (n, H, W) ndarray
            Maps or masks of the size of X.
        """
        _, layout = self._open(X)
        return np.stack([_of_size(one, layout.image_shape[1:]) for one in np.asarray(maps)])


class CropToForeground(_ImageStep):
    """Step that cuts each image to its bright foreground, and puts maps back into their place.

    The foreground is the largest region of pixels above a threshold, and what is cut out is its upright
    box. All boxes are brought to one size, which changes proportions if the box has others. An image of one
    intensity is left whole.

    Parameters
    ----------
    size : int or (height, width), default=None
        Size of the images that come out. None: the size of those that come in.
    threshold : float, default=0.1
        Threshold, as a share of the way from the darkest pixel of an image to its 99th percentile, in [0, 1).
        Channels are averaged.
    margin : float, default=0.02
        Width of a margin around the foreground, as a share of the sides of the box.
    {parameters}
    """

    _parameter_constraints = {"size": _SIZE, "threshold": _SHARE, "margin": _SHARE}

    def __init__(self, size=None, *, threshold=0.1, margin=0.02, channel_axis="auto", image_shape=None):
        self.size = size
        self.threshold = threshold
        self.margin = margin
        self.channel_axis = channel_axis
        self.image_shape = image_shape

    def _change(self, image):
        rows, columns = self._box(image)
        size = image.shape[1:] if self.size is None else pair(self.size, "size")
        return _resize(image[:, rows, columns], size)

    def _box(self, image):
        """Slices of the rows and columns of the foreground."""
        grey = image.mean(axis=0, dtype=np.float64)
        low, high = grey.min(), np.percentile(grey, 99)
        regions, _ = ndimage.label(grey > low + self.threshold * (high - low), structure=np.ones((3, 3)))
        sizes = np.bincount(regions.ravel())
        sizes[0] = 0
        if not sizes.any():
            return slice(None), slice(None)
        box = ndimage.find_objects(regions)[sizes.argmax() - 1]
        margins = [round(self.margin * (side.stop - side.start)) for side in box]
        return tuple(
            slice(max(0, side.start - margin), min(length, side.stop + margin))
            for side, margin, length in zip(box, margins, grey.shape)
        )

    def restore_maps(self, maps: ArrayLike, X: ArrayLike) -> NDArray[Any]:
        """Put maps or masks back into the frame of X.

        Parameters
        ----------
        maps : (n, h, w) array
            Maps of the images that `transform` makes of X; a bool array holds masks.
        X : array-like
            Images, as `transform` took them.

        Returns
        -------
        maps : (n, H, W) ndarray
            Maps or masks of the size of X. Outside of the foreground a mask is False, and a map has its
            lowest value.
        """
        images, layout = self._open(X)
        restored = []
        for one, image in zip(np.asarray(maps), _each(images, layout)):
            box = self._box(image)
            whole = np.full(image.shape[1:], False if one.dtype == bool else one.min(), one.dtype)
            whole[box] = _of_size(one, whole[box].shape)
            restored.append(whole)
        return np.stack(restored)


class LocalContrast(_ImageStep):
    """Step that equalises the histogram of each neighbourhood (CLAHE of scikit-image).

    Differences in illumination within an image, and between images, become smaller. Each image is spread
    over [0, 1] on its own, in float32 unless X holds floats. In images of three channels the brightness (V of
    HSV) is equalised.

    Parameters
    ----------
    kernel_size : int, default=None
        Side of a neighbourhood in pixels. None is an eighth of each side of the image.
    clip_limit : float, default=0.01
        Limit of the contrast, in [0, 1]: a higher one gives more.
    {parameters}
    """

    _parameter_constraints = {
        "kernel_size": [Interval(Integral, 1, None, closed="left"), None],
        "clip_limit": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(self, kernel_size=None, *, clip_limit=0.01, channel_axis="auto", image_shape=None):
        self.kernel_size = kernel_size
        self.clip_limit = clip_limit
        self.channel_axis = channel_axis
        self.image_shape = image_shape

    def _change(self, image):
        from skimage.exposure import equalize_adapthist

        values = image.astype(np.float64)
        low, high = (0, 255) if image.dtype == np.uint8 else (values.min(), values.max())
        dtype = image.dtype if image.dtype.kind == "f" else np.float32
        if image.min() == image.max():
            return np.zeros(image.shape, dtype)
        values = (values - low) / (high - low)
        options = {"kernel_size": self.kernel_size, "clip_limit": self.clip_limit}
        if len(image) == 3:
            equalised = np.moveaxis(equalize_adapthist(np.moveaxis(values, 0, -1), **options), -1, 0)
        else:
            equalised = np.stack([equalize_adapthist(channel, **options) for channel in values])
        return equalised.astype(dtype)


class MatchHistogram(_ImageStep):
    """Step that gives each image the mean histogram of the normal training images.

    Brightness and contrast of a scanner, or of an exposure, no longer differ between images; neither does an
    illness that changes the histogram as a whole. Channels are matched one by one.

    Parameters
    ----------
    n_quantiles : int, default=256
        Number of quantiles that describe a histogram.
    {parameters}

    Attributes
    ----------
    quantiles_ : (C, n_quantiles) ndarray
        Quantiles of each channel, mean of the training images.
    """

    _learns = True

    _parameter_constraints = {"n_quantiles": [Interval(Integral, 2, None, closed="left")]}
    quantiles_: NDArray[np.float64]

    def __init__(self, n_quantiles=256, *, channel_axis="auto", image_shape=None):
        self.n_quantiles = n_quantiles
        self.channel_axis = channel_axis
        self.image_shape = image_shape

    def _learn(self, images):
        at = (np.arange(self.n_quantiles) + 0.5) / self.n_quantiles
        total, n = 0.0, 0
        for image in images:
            with np.errstate(over="ignore"):
                total += np.quantile(image.reshape(len(image), -1), at, axis=1).T
            n += 1
        check_learned(quantiles_=total / n)
        self.quantiles_ = total / n

    def _change(self, image):
        from skimage.exposure import match_histograms

        reference = self.quantiles_[:, :, None]
        matched = match_histograms(image.astype(np.float64), reference, channel_axis=0)
        return (np.rint(matched) if image.dtype.kind in "iu" else matched).astype(image.dtype)


def _each(X, layout):
    """Yield the images of X, (C, H, W) in its dtype. NaN and infinity are refused."""
    for block in blocks(X):
        values = np.asarray(X[block])
        refuse_non_finite(values)
        yield from layout.to_network(values)


def _resize(image, size):
    """Image (C, h, w) of this size, made of an image (C, H, W)."""
    return np.stack([resize(np.ascontiguousarray(channel), size) for channel in image]).astype(image.dtype)


def _of_size(one, size):
    """Map or mask of another size."""
    return nearest(one, size) if one.dtype == bool else resize(one.astype(np.float32), size)

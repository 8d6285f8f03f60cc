"""Features of images: a transformer from images to rows, by which any outlier detector judges images."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import TransformerMixin
from sklearn.utils import metadata_routing
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted

from . import _backbone
from ._atomic import atomic_fit
from ._finite import refuse_not_finite
from ._format import InputFormat
from ._inference import resolve_device
from ._random import default_modes
from .base import HoldsBackbone, ImageEstimator, gather
from .labels import warn_without_anomalies

__all__ = ["ImageFeatures"]

#: Beginning of the name of a layer that has a number, by the name of the backbone.
STEMS = {"imagenet": "stage", "filters": "scale"}


class ImageFeatures(HoldsBackbone, TransformerMixin, ImageEstimator):
    """Transformer from images to rows of features, those by which `FeatureGaussian` judges an image.

    Feature maps of a frozen network are averaged over the cells of a grid and joined to one row for an image.
    Rows do not depend on the other images, their order or number.

    Parameters
    ----------
    {backbone}
    {parameters}

    Attributes
    ----------
    grid_ : tuple (h, w)
        Number of cells on either side.
    {attributes}

    See Also
    --------
    FeatureGaussian : Detector with one Gaussian of these features, and a map.

    Notes
    -----
    :Variants:
        * One-class SVM: ``make_pipeline(ImageFeatures(), StandardScaler(), OneClassSVM())``
        * Probabilistic PCA: ``make_pipeline(ImageFeatures(), StandardScaler(), PCA(0.95))``
        * Isolation forest: ``make_pipeline(ImageFeatures(), IsolationForest())``
        * Local outlier factor: ``make_pipeline(ImageFeatures(), LocalOutlierFactor(novelty=True))``
        * Kernel density: ``make_pipeline(ImageFeatures(), StandardScaler(), PCA(16), KernelDensity())``
        * Gaussian mixture: ``make_pipeline(ImageFeatures(), PCA(16), GaussianMixture(2))``
        * Robust kernel density: ``make_pipeline(ImageFeatures(), StandardScaler(), RobustKernelDensity())``
        * Cluster-based local outlier factor: ``make_pipeline(ImageFeatures(), StandardScaler(), CBLOF())``
        * Principal component classifier: ``make_pipeline(ImageFeatures(), PrincipalComponentClassifier())``

    A feature has the name ``layer_channel_row_column``, for example "stage3_79_0_1"; all numbers count from
    0. A layer is called "stage0" to "stage6" for "imagenet" and "scale0" to "scale2" for "filters". A layer
    that was given by name keeps its name, and what a module returns is "map0", "map1" and so on. "filters"
    have four channels for each channel of the image: first the vertical derivatives of all channels, then
    their horizontal derivatives, their Laplacians and the images themselves.

    Known anomalies (y = -1) have features, too, and a Pipeline passes them on to the next step, which
    learns from them. Fit such a Pipeline to normal images alone; `NormalOnlyKFold` does so in a search.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn.svm import OneClassSVM
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.features import ImageFeatures
    >>> X = load_chest_xray().images
    >>> ImageFeatures(backbone="filters").fit_transform(X[:64]).shape
    (64, 768)
    >>> detector = make_pipeline(ImageFeatures(backbone="filters"), StandardScaler(), OneClassSVM())
    >>> detector.fit(X[:64]).score_samples(X).shape
    (935,)
    """

    # `out` is no metadata that a Pipeline could be asked to pass on.
    __metadata_request__transform = {"out": metadata_routing.UNUSED}

    grid: Any
    grid_: tuple[int, int]

    def __init__(
        self,
        *,
        backbone="imagenet",
        layers=None,
        input_size=None,
        grid="auto",
        device="auto",
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self._assign_shared(locals())

    @atomic_fit(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn the format of X, and fit the backbone if it is an unfitted detector.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C), (n, C, H, W) or (n, d)
            Images, or rows, in any container that a detector takes.
        y : (n,) array-like, default=None
            Labels: 1 normal, 0 unlabelled, -1 known anomaly. From rows with -1 nothing is learned, neither
            the range of intensities nor a backbone.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X holds NaN or infinity, its shape is ambiguous or impossible, a label is missing, fewer than
            two images are usable, or a parameter is out of range. A fit that fails leaves the transformer as
            it was.
        TypeError
            If X holds paths, masked values or no real numbers, or if `backbone` is an estimator that is no
            detector of images.

        Warns
        -----
        LabelWarning
            If a detector is fitted and y holds anything but the number 1, and no -1.
        """
        self.device_ = resolve_device(self.device)
        with default_modes():
            self._format, images = InputFormat.learn(X, y, self, self._image_range)
            if _backbone.learns(self.backbone):
                warn_without_anomalies(y, "the backbone learned all rows, labelled {labels}, as normal")
            self._prepare(images)
            self.network_ = self._place(self._new_backbone(self.image_shape_).eval())
        self.grid_ = _backbone.grid_cells(self.grid, self.backbone_)
        return self

    def transform(self, X: ArrayLike, *, out: Any = None) -> NDArray[np.float32]:
        """Features of each image.

        X is read once, and one batch of images is in memory at a time.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        out : array-like of shape (n, d), default=None
            Array into which the features are written, for example a writable memmap. A dtype that cannot
            hold float32 is refused.

        Returns
        -------
        features : (n, d) float32 ndarray, or `out`
            Features in the order of `get_feature_names_out`.

        Raises
        ------
        ValueError
            If X does not fit the images of `fit`, or a feature is not finite; the message names the image.
        """
        images = self._open(X)
        return gather(self._rows(images), (len(images), self._n_features_out), np.float32, out)

    def _rows(self, images):
        """Yield (slice, features) for each batch."""
        network, cells = self.network_, self.grid_
        for rows, features in self._run(lambda x: _backbone.vectors(network, network(x), cells), images):
            refuse_not_finite("a feature", features, rows.start)
            yield rows, features

    @property
    def _n_features_out(self):
        return sum(shape[0] for shape in self.feature_shapes_) * self.grid_[0] * self.grid_[1]

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[np.object_]:
        """Names of the features, such as "stage3_79_0_1": layer, channel, and row and column of the cell.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the columns of X, only compared with ``feature_names_in_``.

        Returns
        -------
        names : (d,) ndarray of str
            Names in the order of the columns of `transform`.
        """
        check_is_fitted(self)
        _check_feature_names_in(self, input_features, generate_names=False)
        names, cells = self._layer_names(), list(np.ndindex(self.grid_))
        found = [
            f"{name}_{channel}_{row}_{column}"
            for name, shape in zip(names, self.feature_shapes_)
            for channel in range(shape[0])
            for row, column in cells
        ]
        return np.array(found, dtype=object)

    def _layer_names(self):
        layers = self.backbone_["layers"]
        if not layers:
            return [f"map{k}" for k in range(len(self.feature_shapes_))]
        return [f"{STEMS.get(self.backbone_['name'], '')}{layer}" for layer in layers]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

"""Encoders that learn features of images without labels: transformers, and backbones of feature detectors."""

from numbers import Real
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions

from ._atomic import all_or_nothing, checked_fit
from ._finite import refuse_not_finite
from ._format import InputFormat
from ._random import default_modes
from .base import ImageEstimator, TrainsInEpochs, gather
from .labels import warn_without_anomalies
from .networks.byol import BYOLNetwork
from .training import CallbackSupport, SelfSupervised, view_pair
from .transforms import PRESETS

__all__ = ["SelfSupervisedEncoder"]


class SelfSupervisedEncoder(
    TrainsInEpochs, CallbackSupport, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ImageEstimator
):
    """Encoder that learns to give two random views of an image the same features.

    As a transformer it makes a row of features of each image. As the `backbone` of `FeatureGaussian`,
    `PaDiM`, `PatchCore` or `ImageFeatures` it is cloned and fitted to the training images, and the maps of
    its levels are used.

    Parameters
    ----------
    objective : {"byol"}, default="byol"
        Task that teaches the encoder. "byol": its features of one view, after a projector and a predictor,
        are compared with those that a slow copy of encoder and projector, the target, gives for the other
        view.
    transforms : str, callable, tuple of two callables or None, default="auto"
        Transforms that make the views: the name of a preset of `skanomaly.transforms`, one transform for both
        views, or one for each. "auto" is the preset "oct" for grey images, "cfp" for images with three
        channels, and "color" for others. None leaves the views unchanged.
    momentum : float, default=0.99
        Share of its weights that the target keeps at each step.
    hidden_size : int, default=512
        Number of features.
    width : int, default=16
        Channels of the first level. The next levels have 2 and 4 times as many.
    n_levels : int, default=None
        Number of times each side is halved. None halves sides to about 4 pixels (4 times at 64 x 64).
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    SSLAnoVAE : Detector whose second encoder learns in the same way.

    Notes
    -----
    The network is that of SSLAnoVAE's second encoder, far smaller than the ResNet-50 of the paper [1]_. Its
    optimiser is Adam, and `momentum` stays as it is, where the paper raises it to 1.

    References
    ----------
    .. [1] Grill, J.-B. et al. (2020). "Bootstrap your own latent: A new approach to self-supervised
       learning". NeurIPS. `arXiv:2006.07733 <https://arxiv.org/abs/2006.07733>`_

    Examples
    --------
    >>> from skanomaly import FeatureGaussian
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.encoders import SelfSupervisedEncoder
    >>> X = load_chest_xray().images[:64]
    >>> encoder = SelfSupervisedEncoder(max_epochs=1, random_state=0)
    >>> encoder.fit_transform(X).shape
    (64, 512)
    >>> FeatureGaussian(backbone=encoder).fit(X).score_samples(X).shape
    (64,)
    """

    _image_range = (-1.0, 1.0)

    _parameter_constraints = {
        "objective": [StrOptions({"byol"})],
        "transforms": [StrOptions({"auto", *PRESETS}), callable, tuple, None],
        "momentum": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        *,
        objective="byol",
        transforms="auto",
        momentum=0.99,
        hidden_size=512,
        width=16,
        n_levels=None,
        max_epochs=None,
        batch_size=64,
        lr=1e-3,
        checkpoint_dir=None,
        callbacks=None,
        device="auto",
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        verbose=0,
        random_state=None,
    ):
        self.objective = objective
        self.transforms = transforms
        self.momentum = momentum
        self._assign_shared(locals())

    # A stage has no validation loss: that of views falls to 0 if all features are equal.
    validation_fraction = 0.0

    @checked_fit(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn features of images, of which none is known to be anomalous.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C), (n, C, H, W) or (n, d)
            Images, or rows, in any container that a detector takes.
        y : (n,) array-like, default=None
            Labels: 1 normal, 0 unlabelled, -1 known anomaly. Rows with -1 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X holds NaN or infinity, its shape is ambiguous or impossible, a label is missing, fewer than
            two images are usable, or a parameter is out of range. A fit that fails leaves the encoder as it
            was.
        FloatingPointError
            If a loss or a weight is not finite.

        Warns
        -----
        LabelWarning
            If y holds anything but the number 1, and no -1.
        """
        with self._fit_task(X, y), default_modes():
            self._fit(X, y)
        return self

    @all_or_nothing
    def _fit(self, X, y):
        self._check_process()
        self._format, images = InputFormat.learn(X, y, self, self._image_range)
        warn_without_anomalies(y, "all rows, labelled {labels}, are learned as normal")
        self._learn(images)

    def _build(self, image_shape):
        return BYOLNetwork(image_shape, **self._network_size())

    def _train(self, run, network, images):
        views = view_pair(self.transforms, self.image_shape_[0])
        run("ssl", SelfSupervised, network, images, views=views, momentum=self.momentum)

    def _measure(self, network, images):
        """Nothing is measured: features have no thresholds."""

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Features of each image.

        X is read once, and one batch of images is in memory at a time.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        features : (n, hidden_size) float32 ndarray

        Raises
        ------
        ValueError
            If X does not fit the images of `fit`, or a feature is not finite; the message names the image.
        """
        images = self._open(X)
        return gather(self._rows(images), (len(images), self._n_features_out), np.float32, None)

    def _rows(self, images):
        for rows, features in self._run(self.network_, images):
            refuse_not_finite("a feature", features, rows.start)
            yield rows, features

    @property
    def _n_features_out(self):
        return self.hidden_size

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

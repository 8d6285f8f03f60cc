"""FeatureDetector: base of detectors that describe images by the feature maps of a frozen backbone."""

from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils.metaestimators import available_if
from torch import nn

from .. import _backbone, labels
from .._atomic import all_or_nothing, checked_fit
from .._inference import Replay
from .._random import default_modes, seeded
from ._detector import BaseDetector
from ._state import state_of


class HoldsBackbone:
    """Mixin of estimators with the parameters `backbone`, `layers` and `input_size`."""

    #: Layers that None stands for, by the name of the backbone.
    _layers = {"imagenet": (1, 2, 3, 4, 5, 6), "filters": (0, 1, 2)}

    backbone_: dict
    feature_shapes_: tuple
    n_images_: int

    def _prepare(self, images):
        """Set the attributes that describe the backbone; a detector is fitted to the images first."""
        self.n_images_ = len(images)
        self.backbone_detector_ = _backbone.fit_inner(self.backbone, images, self.random_state)
        image_shape = images.layout.image_shape
        with torch.no_grad(), _backbone.explained(self.backbone, image_shape):
            self.backbone_ = _backbone.describe(
                self.backbone, self.backbone_detector_, self.layers, self.input_size, images, self._layers
            )
            maps = self._new_backbone(image_shape)(images[:1].to(self.device_))
        self.feature_shapes_ = tuple(tuple(m.shape[1:]) for m in maps)

    def _new_backbone(self, image_shape):
        inner = self.backbone_detector_
        image_range = self._image_range if inner is None else inner._format.image_range
        given = self.layers, self.input_size, image_shape, image_range
        return _backbone.build(self.backbone, inner, self.backbone_, *given)

    def _check_own_attributes(self, attributes):
        n_images, shapes = attributes["n_images_"], attributes["feature_shapes_"]
        if type(n_images) is not int or n_images < 2:
            raise ValueError(f"n_images_ cannot be {n_images!r}")
        n_maps = len(attributes["backbone_"]["layers"]) or len(shapes)
        if n_maps != len(shapes) or any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
            raise ValueError(f"feature_shapes_ cannot be {shapes!r}")


class FeatureDetector(HoldsBackbone, BaseDetector):
    """Base of detectors that describe images by the feature maps of a frozen backbone.

    A subclass writes `_new_density`, a module of statistics; `_describe`, which makes tensors of feature
    maps; `_learn_density`, which fills the statistics from the tensors of all images; and `_judge_features`,
    which judges these tensors. Its constructor also has the parameters `backbone`, `layers` and `input_size`.

    A subclass whose statistics are sums may have the parameter `keep_sums`. Its `_learn_density` then learns
    from the statistics of other detectors, too, and `_check_sums` refuses what sums cannot do.
    """

    def _prepare(self, images):
        if self._keeps_sums():
            self._check_sums(images.y)
        super()._prepare(images)

    def _keeps_sums(self):
        return getattr(self, "keep_sums", False)

    def _check_sums(self, y):
        """Raise a ValueError if sums of images with labels y, or None, are not enough for the parameters."""

    def _new_density(self, shapes):
        """Module of statistics for feature maps of these shapes (c, h, w). ``n_images_`` is known."""
        raise NotImplementedError

    def _describe(self, network, maps):
        """Tensors (n, ...) by which a batch of images is judged, a tuple, made of its feature maps."""
        raise NotImplementedError

    def _learn_density(self, network, described, parts=()):
        """Fill the statistics of the network from the training images.

        Parameters
        ----------
        network : nn.Module
        described : Replay
            Iterable over (number of images, tensors of `_describe`), batch by batch.
        parts : sequence of nn.Module, default=()
            Statistics, with the sums that they keep, of more training images. A subclass without the
            parameter `keep_sums` has no such argument.
        """
        raise NotImplementedError

    def _judge_features(self, network, *tensors):
        """Judgement of a batch from the tensors of `_describe`."""
        raise NotImplementedError

    def _judge_own(self, network, rows, *tensors):
        """`_judge_features` for the training images `rows`; a method that remembers them leaves these out."""
        return self._judge_features(network, *tensors)

    def _build(self, image_shape):
        network = nn.Module()
        network.backbone = self._new_backbone(image_shape)
        network.density = self._new_density(self.feature_shapes_)
        return network

    def _measure(self, network, images):
        described = self._replay(network, images)
        self._learn_density(network, described)
        return described.map(lambda *batch: self._judge_own(network, *batch)[:2])

    @available_if(_keeps_sums)
    @checked_fit(prefer_skip_nested_validation=False)
    @all_or_nothing
    def partial_fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn from more images; with ``keep_sums=True`` only.

        Scores and maps become those of one fit to all images together. The first call is `fit`. Later ones
        keep its backbone, layout and range of intensities.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape: two or more at first, any number later.
        y : array-like of shape (n,), default=None
            Labels, as in `fit`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If `fit` would refuse X or y, or parameters were changed after `fit`, so that they no longer
            describe the network. A call that fails leaves the detector as it was.

        See Also
        --------
        skanomaly.merge : Detector of the images of several detectors.

        Notes
        -----
        Earlier images are not there to be judged again. Thresholds are the means of the earlier ones and of
        those of the new images, weighted by the numbers of images: `calibrate` the detector before it is
        used.
        """
        if "_format" not in vars(self):
            return self.fit(X, y)
        images = self._open(X)
        used, codes = labels.training_rows(y, len(images), least=1)
        self._check_sums(codes)
        self._warn_of_labels(y, "all rows, labelled {labels}, are learned as normal")
        self._learn_more([self], images.subset(np.flatnonzero(used)))
        return self

    def _learn_more(self, parts, images=None):
        """Learn from the sums that fitted detectors keep, and from images. ``network_`` is a new one."""
        vars(self).pop("calibration_scores_", None)
        for part in parts:
            state_of(part)  # refuses parameters that no longer describe the network
        counts, thresholds = [part.n_images_ for part in parts], [_thresholds(part) for part in parts]
        densities = [part.network_.density for part in parts]
        self.n_images_ = sum(counts) + (0 if images is None else len(images))
        with default_modes(), seeded(0, self.device_):
            network = self._new_network()
            described = () if images is None else self._replay(network, images)
            self._learn_density(network, described, densities)
        self.network_ = self._settle(network)
        if images is not None:
            judged = described.map(lambda *batch: self._judge_own(network, *batch)[:2])
            scores, pixels = self._sample(images, judged)
            offset = np.percentile(-scores, 100 * self.contamination)
            self._set_thresholds(offset, pixels, self.pixel_contamination)
            counts, thresholds = [*counts, len(images)], [*thresholds, _thresholds(self)]
        means = np.average(thresholds, axis=0, weights=counts)
        self.offset_, self.pixel_offset_, *ends = map(float, means)
        self.map_range_ = tuple(ends)

    def _replay(self, network, images):
        return Replay(lambda x: self._features(network, x), network, images, self.device_)

    def _features(self, network, x):
        return self._describe(network, network.backbone(x))

    def _judge(self, network, x):
        return self._judge_features(network, *self._features(network, x))


def _thresholds(detector):
    return [detector.offset_, detector.pixel_offset_, *detector.map_range_]


def check_sums(detector):
    """Raise a ValueError if the parameters of a detector cannot be had from sums."""
    detector._check_sums(None)


def merged(detectors):
    """Detector of the images of all detectors, whose networks keep sums, with the parameters of the first."""
    first = detectors[0]
    whole = clone(first)
    parameters = whole.get_params(deep=False)
    vars(whole).update({name: value for name, value in vars(first).items() if name not in parameters})
    whole._learn_more(detectors)
    return whole

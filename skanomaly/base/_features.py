"""FeatureDetector: base of detectors that describe images by the feature maps of a frozen backbone."""

import torch
from torch import nn

from .. import _backbone
from .._inference import Replay
from ._detector import BaseDetector


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


class FeatureDetector(HoldsBackbone, BaseDetector):
    """Base of detectors that describe images by the feature maps of a frozen backbone.

    A subclass writes `_new_density`, a module of statistics; `_describe`, which makes tensors of feature
    maps; `_learn_density`, which fills the statistics from the tensors of all images; and `_judge_features`,
    which judges these tensors. Its constructor also has the parameters `backbone`, `layers` and `input_size`.
    """

    def _new_density(self, shapes):
        """Module of statistics for feature maps of these shapes (c, h, w). ``n_images_`` is known."""
        raise NotImplementedError

    def _describe(self, network, maps):
        """Tensors (n, ...) by which a batch of images is judged, a tuple, made of its feature maps."""
        raise NotImplementedError

    def _learn_density(self, network, described):
        """Fill the statistics of the network from the training images.

        Parameters
        ----------
        network : nn.Module
        described : Replay
            Iterable over (number of images, tensors of `_describe`), batch by batch.
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
        described = Replay(lambda x: self._features(network, x), network, images, self.device_)
        self._learn_density(network, described)
        return described.map(lambda *batch: self._judge_own(network, *batch)[:2])

    def _check_own_attributes(self, attributes):
        n_images, shapes = attributes["n_images_"], attributes["feature_shapes_"]
        if type(n_images) is not int or n_images < 2:
            raise ValueError(f"n_images_ cannot be {n_images!r}")
        n_maps = len(attributes["backbone_"]["layers"]) or len(shapes)
        if n_maps != len(shapes) or any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
            raise ValueError(f"feature_shapes_ cannot be {shapes!r}")

    def _features(self, network, x):
        return self._describe(network, network.backbone(x))

    def _judge(self, network, x):
        return self._judge_features(network, *self._features(network, x))

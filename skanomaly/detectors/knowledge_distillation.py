"""KnowledgeDistillation: a small network learns the features of a large one, from normal images only."""

import math
from numbers import Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn
from torch.nn import functional as F

from .. import _inference
from .._losses import gradient_map
from .._random import seeded
from ..base import HoldsBackbone, Judgement, TrainedDetector
from ..networks.backbone import blur
from ..networks.cloner import Cloner, GuidedReLU
from ..networks.density import enlarged, fine
from ..training import (
    DescribedImages,
    Distillation,
    direction_error,
    distillation_error,
    magnitude_error,
)

#: Noisy copies of an image over which "smooth_grad" averages, and the deviation of their noise.
N_COPIES, NOISE = 8, 0.1


class DistillationNetwork(nn.Module):
    """Parts `source`, which is frozen, and `cloner`, which learns its feature maps.

    The maps of a layer are divided by `scales`, the root of their mean square in training images: a
    difference of 1 then means as much in one layer as in another, and directions do not change.
    """

    def __init__(self, source, cloner):
        super().__init__()
        self.source, self.cloner = source, cloner
        self.register_buffer("scales", torch.ones(len(cloner.levels)))

    def source_maps(self, x):
        return [self.source.pooled(m) / scale for m, scale in zip(self.source(x), self.scales)]


def place_error(f, g, magnitude_weight):
    """Error of feature maps (n, c, h, w) at each place, that of the vectors there, (n, h, w)."""
    direction = 1 - F.cosine_similarity(f, g, dim=1)
    return direction + magnitude_weight * (f - g).square().mean(1)


def blurred(maps, share):
    """Maps (n, h, w) after a Gaussian filter of this share of each side."""
    return blur(maps[:, None], [share * side for side in maps.shape[1:]])[:, 0]


def opened(maps):
    """Maps (n, h, w) after a grey opening of 3 x 3 pixels, which removes bright specks."""
    eroded = -F.max_pool2d(-maps[:, None], 3, 1, 1)
    return F.max_pool2d(eroded, 3, 1, 1)[:, 0]


def smooth_gradient_map(loss, x):
    """Mean of `gradient_map` over noisy copies of the images (SmoothGrad, Smilkov et al. 2017), (n, h, w)."""
    # One seed, and the same noise for all images: a map depends on its image alone.
    with seeded(0):
        noise = torch.randn(N_COPIES, *x.shape[1:]) * NOISE
    return torch.stack([gradient_map(loss, x + n) for n in noise.to(x.device)]).mean(0)


class KnowledgeDistillation(HoldsBackbone, TrainedDetector):
    """Multiresolution knowledge distillation (M-KD): a small network learns the features of a large one.

    The source, a frozen network, describes an image by feature maps of several layers. The cloner, a small
    network, is trained to make the same maps of normal images. Of an anomalous image it has never learned
    what the source would say. The score is the difference of their maps, in direction and in magnitude.

    Parameters
    ----------
    {backbone}
    input_size : int or tuple (h, w), default=128
        Size to which images are resized for both networks. An int is the side of a square of equal area, so
        that proportions stay. None is 224 for "imagenet", 64 for "filters", else the size of the images.
    width : int, default=32
        Channels of the cloner between two of its feature maps, which have as many as the source's.
    magnitude_weight : float, default=0.5
        Weight of the mean squared difference beside that of directions, lambda in the public code. With 0 a
        map and its multiples are equal.
    attribution : {"features", "gradient", "smooth_grad", "guided"}, default="features"
        Map. "features": the difference of the feature vectors at each position. "gradient": the derivative of
        the score with respect to each pixel. "smooth_grad": its mean over noisy copies of the image.
        "guided": the derivative by guided back-propagation, in which the cloner passes no negative derivative
        on.
    blur : float, default=0.03
        Deviation of the Gaussian filter of maps, as a share of each side.
    max_epochs : int, default=None
        Number of passes over the normal images. None makes {max_epochs steps} training steps, whatever the
        number of images.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    UninformedStudents : Several students, which learn features of patches.
    FeatureGaussian : A Gaussian of the same features, without training.

    Notes
    -----
    :Family: distillation
    :Trained on: normal images
    :Score: 1 - cos between the feature maps of both networks plus the weighted mean squared difference, added
        up over all layers but the first
    :Map: the same for the feature vectors at each position; or the absolute derivative of the score with
        respect to each pixel
    :Departures: the paper's source is a VGG-16, its cloner a smaller one; here the source is
        EfficientNet-Lite0, whose maps are scaled to a mean square of 1, and the cloner halves sides by
        convolutions of stride 2. The default map is not by gradients, which find the place of an anomaly far
        worse here. Maps by gradients are opened by 3 x 3 pixels after the Gaussian filter, as in the public
        code. "guided" concerns the cloner alone
    :Variants:
        * M-KD with maps by gradients, as in the paper: ``KnowledgeDistillation(attribution="gradient")``
        * M-KD with SmoothGrad: ``KnowledgeDistillation(attribution="smooth_grad")``
        * M-KD with guided back-propagation: ``KnowledgeDistillation(attribution="guided")``

    The first of several layers is learned but not scored, as in the public code. The components of
    `score_components` are "direction" and "magnitude", without weight.

    References
    ----------
    .. [1] Salehi, M., Sadjadi, N., Baselizadeh, S., Rohban, M. H., Rabiee, H. R. (2021). "Multiresolution
       knowledge distillation for anomaly detection". CVPR.
       `arXiv:2011.11108 <https://arxiv.org/abs/2011.11108>`_

    Examples
    --------
    >>> from skanomaly import KnowledgeDistillation
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = KnowledgeDistillation(backbone="filters", max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _layers = {"imagenet": (1, 2, 3, 4, 5, 6), "filters": (0, 1, 2)}
    _steps = {"max_epochs": 1000}

    _parameter_constraints = {
        "attribution": [StrOptions({"features", "gradient", "smooth_grad", "guided"})],
        "blur": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        *,
        backbone="imagenet",
        layers=None,
        input_size=128,
        width=32,
        magnitude_weight=0.5,
        attribution="features",
        blur=0.03,
        max_epochs=None,
        batch_size=16,
        lr=1e-3,
        validation_fraction=0.0,
        checkpoint_dir=None,
        callbacks=None,
        device="auto",
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        verbose=0,
        random_state=None,
    ):
        self.magnitude_weight = magnitude_weight
        self.attribution = attribution
        self.blur = blur
        self._assign_shared(locals())

    def _build(self, image_shape):
        size = self.backbone_["input_size"]
        cloner = Cloner(image_shape[0], size, self.feature_shapes_, self.width)
        return DistillationNetwork(self._new_backbone(image_shape), cloner)

    def _train(self, run, network, images):
        n_bytes = 4 * len(images) * sum(map(math.prod, self.feature_shapes_))
        kept = n_bytes <= _inference.CACHE_BYTES

        def describe(x):
            maps = network.source_maps(x)
            squares = torch.stack([m.square().mean((1, 2, 3)) for m in maps], 1)
            return squares, *(maps if kept else ())

        squares, *maps = _inference.collect(describe, network, images, self.device_)
        scales = torch.from_numpy(squares.mean(0)).sqrt()
        # A layer of zeros, such as that of constant images, has no scale.
        network.scales.copy_(torch.where(scales > 0, scales, 1))
        if kept:
            targets = [torch.from_numpy(m) / scale for m, scale in zip(maps, network.scales.cpu())]
            images = DescribedImages(images, targets)
        run("distillation", Distillation, network, images, magnitude_weight=self.magnitude_weight)

    def _pairs(self, network, x, activate=torch.relu):
        """Feature maps of cloner and source that the score compares, as pairs."""
        pairs = list(zip(network.cloner(x, activate), network.source_maps(x)))
        # The first of several only helps the cloner to learn the others.
        return pairs[1:] or pairs

    def _judge(self, network, x):
        pairs = self._pairs(network, x)
        direction = sum(direction_error(f, g) for f, g in pairs)
        magnitude = sum(magnitude_error(f, g) for f, g in pairs)
        score = direction + self.magnitude_weight * magnitude
        return Judgement(
            score, self._map(network, x, pairs), {"direction": direction, "magnitude": magnitude}
        )

    def _map(self, network, x, pairs):
        size = x.shape[2:]
        if self.attribution == "features":
            # Coarse maps would blur the others.
            chosen = fine([f.shape[1:] for f, _ in pairs], self.backbone_["input_size"])
            errors = [place_error(*pairs[k], self.magnitude_weight) for k in chosen]
            return blurred(sum(enlarged(error, size, 0) for error in errors), self.blur)
        activate = GuidedReLU.apply if self.attribution == "guided" else torch.relu

        def score(x):
            return distillation_error(*zip(*self._pairs(network, x, activate)), self.magnitude_weight)

        by_gradient = smooth_gradient_map if self.attribution == "smooth_grad" else gradient_map
        return opened(blurred(by_gradient(score, x), self.blur))

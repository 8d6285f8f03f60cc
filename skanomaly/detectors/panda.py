"""PANDA: features of a pre-trained network, whose last stages learn to bring normal images together."""

from functools import partial
from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval
from torch import nn

from .. import _backbone
from .._format import Layout
from .._images import Images
from .._inference import CACHE_BYTES, collect
from ..base import HoldsBackbone, Judgement, TrainedDetector
from ..networks.bank import FeatureBank
from ..networks.tuned import split
from ..training import Training

#: Images by which the importance of weights is estimated.
N_FISHER = 64


class PANDANetwork(nn.Module):
    """Parts `frozen` and `tuned`, which make features, and the `bank` of features of training images.

    Parameters
    ----------
    backbone : nn.Module
        Module that `_backbone.build` made.
    tuned : sequence of int or str, or None
    cells : tuple (h, w)
        Cells over which maps are averaged.
    n_images, n_features : int
    """

    def __init__(self, backbone, tuned, cells, n_images, n_features):
        super().__init__()
        self.cells = cells
        self.frozen, self.tuned = split(backbone, tuned)
        if self.tuned is None:
            self.tuned = nn.Linear(n_features, n_features)
            nn.init.eye_(self.tuned.weight)
            nn.init.zeros_(self.tuned.bias)
        self.bank = FeatureBank(n_images, n_features)
        self.register_buffer("centre", torch.zeros(n_features))

    def start(self, x):
        """Output of the frozen part for images, a tensor (n, ...)."""
        with torch.no_grad():
            maps = self.frozen(x)
            if isinstance(self.tuned, nn.Linear):
                return _backbone.vectors(self.frozen, maps, self.cells)
            return maps[0]

    def features(self, started):
        """Features (n, n_features), of the output of `start`."""
        if isinstance(self.tuned, nn.Linear):
            return self.tuned(started.flatten(1))
        return _backbone.vectors(self.tuned, self.tuned(started), self.cells)


def compactness(features, centre):
    """Squared distance (n,) of features from their centre, divided by their number (eq. 5 of the paper)."""
    return (features - centre).square().mean(1)


def elastic_loss(weights, first, importance):
    """Half the sum of the squared changes of weights since they were `first`, times their importance."""
    return sum((f * (w - w0).square()).sum() for w, w0, f in zip(weights, first, importance)) / 2


def trained_weights(network):
    return [weight for weight in network.tuned.parameters() if weight.requires_grad]


def fisher_information(network, started):
    """Diagonal of the Fisher information of the trained weights: their importance, a tensor for each.

    It is the mean squared derivative of the features by the weight, as for features with Gaussian noise: how
    much a squared change of the weight changes the mean squared feature.

    Parameters
    ----------
    network : PANDANetwork
    started : tensor (n, ...)
        Images after the frozen part.
    """
    weights = trained_weights(network)
    total = [torch.zeros_like(weight) for weight in weights]
    for x in started.split(1):  # one by one, because squares of sums of derivatives would mix images
        features = network.features(x)
        # The mean square along random directions is that of all features, by one backward pass.
        direction = torch.randn_like(features) / features.shape[1] ** 0.5
        found = torch.autograd.grad((features * direction).sum(), weights, allow_unused=True)
        for of_weight, derivative in zip(total, found):
            if derivative is not None:
                of_weight += derivative.square() / len(started)
    return total


class Compactness(Training):
    """Trained weights bring the features of normal images closer to their first mean.

    Parameters
    ----------
    network : PANDANetwork
    start : callable (images) -> tensor
        Frozen part, or nothing where images have gone through it already.
    max_gradient : float
        Largest norm of the gradient; larger gradients are scaled to it.
    ewc_weight : float
    importance : sequence of tensor
        Importance of each weight, for elastic weight consolidation. Without weights there is none.
    """

    moves = {"optimizer": ["tuned"]}
    losses = "train_loss", "compactness_loss", "elastic_loss"
    validates = True

    def __init__(self, network, *, start, max_gradient, ewc_weight, importance, **options):
        self.start, self.max_gradient = start, max_gradient
        self.ewc_weight, self.importance = ewc_weight, importance
        self.first = [weight.detach().clone() for weight in trained_weights(network)]
        super().__init__(network, **options)

    def step(self, network, x):
        network.tuned.eval()  # as in the paper: batches would shift the statistics of batch normalisation
        compact = self.validate(network, x)
        weights = trained_weights(network)
        elastic = elastic_loss(weights, self.first, self.importance) if self.importance else 0 * compact
        self.record(compactness_loss=compact, elastic_loss=elastic)
        self.move("optimizer", train_loss=compact + self.ewc_weight * elastic)

    def validate(self, network, x):
        return compactness(network.features(self.start(x)), network.centre).mean()

    def on_grad_computed(self, net, named_parameters, **kwargs):
        weights = [weight for _, weight in named_parameters]
        nn.utils.clip_grad_norm_(weights, self.max_gradient)


class PANDA(HoldsBackbone, TrainedDetector):
    """Distance to the nearest training images, in features that are adapted to normal images.

    The last stages of a pre-trained network learn to bring the features of normal images closer to their
    mean. If this went on, all images would have the same features; it is stopped early, or weights are held
    back by their importance. The score is the sum of the squared distances to the nearest training images.

    Parameters
    ----------
    {backbone}
    tuned : sequence of int or str, default=None
        Numbers of the stages of "imagenet", or names of modules inside the network of a detector or module,
        that are trained. None stands for the last two stages, and for everything in other networks. The
        detector trains a copy; a network that others use stays as it is. A backbone without weights, such as
        "filters", is followed by a linear layer instead, which is the identity before training.
    n_neighbors : int, default=2
        Number of nearest training images.
    max_gradient : float, default=0.001
        Largest norm of a gradient. Larger ones are scaled to it, so that no step is long.
    ewc_weight : float, default=0.0
        Weight of elastic weight consolidation: of the squared changes of the trained weights, times their
        importance.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    FeatureGaussian : Distance in the features of a network that is not trained.

    Notes
    -----
    :Family: features
    :Trained on: normal images
    :Score: sum of the squared distances of the features to those of the nearest training images
    :Map: none
    :Departures: the paper [1]_ has a ResNet-152, of whose last stage each channel is averaged over the image;
        here there is EfficientNet-Lite0, and four cells. Weights of its batch normalisation are part of its
        convolutions. The paper's importance of weights comes from ImageNet; here it is the mean squared
        derivative of the features of training images. Early stopping is a fixed number of steps, as in the
        paper, but fewer; its stopping by image, for which networks of many epochs are kept, is left out

    The features of all training images are remembered, in 4 bytes a number. The threshold of `fit` comes from
    the training images, each of which is its own nearest: of new normal images `predict` flags far more than
    `contamination` says. Call `calibrate` with normal images that were not trained on.

    `score_components` gives the score as "neighbors", and "compactness", the mean squared distance from the
    centre, which is what training makes smaller.

    References
    ----------
    .. [1] Reiss, T., Cohen, N., Bergman, L., Hoshen, Y. (2021). "PANDA: Adapting pretrained features for
       anomaly detection and segmentation". CVPR. `arXiv:2010.05903 <https://arxiv.org/abs/2010.05903>`_
    .. [2] Kirkpatrick, J. et al. (2017). "Overcoming catastrophic forgetting in neural networks". PNAS 114.
       `arXiv:1612.00796 <https://arxiv.org/abs/1612.00796>`_

    Examples
    --------
    >>> from skanomaly import PANDA
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = PANDA(backbone="filters", max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X).shape
    (64,)
    """

    _layers = {"imagenet": (6,), "filters": (0, 1, 2)}

    _steps = {"max_epochs": 100}

    _parameter_constraints = {
        "tuned": [tuple, list, None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "max_gradient": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        *,
        backbone="imagenet",
        layers=None,
        input_size=None,
        grid="auto",
        tuned=None,
        n_neighbors=2,
        max_gradient=1e-3,
        ewc_weight=0.0,
        max_epochs=None,
        batch_size=32,
        lr=1e-2,
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
        self.tuned = tuned
        self.n_neighbors = n_neighbors
        self.max_gradient = max_gradient
        self.ewc_weight = ewc_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        cells = _backbone.grid_cells(self.grid, self.backbone_)
        n_features = sum(shape[0] for shape in self.feature_shapes_) * cells[0] * cells[1]
        backbone = self._new_backbone(image_shape)
        return PANDANetwork(backbone, self.tuned, cells, self.n_images_, n_features)

    def _train(self, run, network, images):
        start, images = self._started(network, images)
        features = collect(lambda x: network.features(start(x)), network, images, self.device_)
        network.centre.copy_(torch.from_numpy(features).double().mean(0))
        importance = ()
        if self.ewc_weight:
            rows = torch.randperm(len(images))[:N_FISHER].numpy()
            importance = fisher_information(network, start(images[rows].to(self.device_)))
        options = {"max_gradient": self.max_gradient, "ewc_weight": self.ewc_weight, "importance": importance}
        sgd = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-5)
        run("compactness", Compactness, network, images, start=start, optimizer=sgd, **options)

    def _started(self, network, images):
        """Function that begins features, and images for it: an identity, and its outputs if they are kept."""
        shape = network.start(images[:1].to(self.device_)).shape[1:]
        if shape == self.image_shape_ or 4 * len(images) * shape.numel() > CACHE_BYTES:
            return network.start, images
        shape = (*shape, 1, 1)[:3]

        def started(of):
            values = collect(network.start, network, of, self.device_)
            return Images(values.reshape(-1, *shape), Layout(shape, 1), (0.0, 1.0))

        # Once, since nothing in the frozen part changes: it takes most of the time of a step.
        done = started(images)
        done.held_out = None if images.held_out is None else started(images.held_out)
        return nn.Identity(), done

    def _measure(self, network, images):
        parts = [images] if images.held_out is None else [images, images.held_out]
        features = [collect(lambda x: self._features(network, x), network, of, self.device_) for of in parts]
        network.bank.features.copy_(torch.cat([torch.from_numpy(rows) for rows in features]))

    def _features(self, network, x):
        return network.features(network.start(x))

    def _judge(self, network, x):
        features = self._features(network, x)
        distances, _ = network.bank.nearest(features, self.n_neighbors)
        score = distances.square().sum(1)
        components = {"neighbors": score, "compactness": compactness(features, network.centre)}
        return Judgement(score, None, components)

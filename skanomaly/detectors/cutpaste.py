"""CutPaste: features that tell images from those with pasted patches, and a Gaussian of them."""

import math
from functools import partial
from numbers import Integral

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn
from torch.nn import functional as F

from .._inference import Replay
from .._random import seeded
from ..base import Judgement, TrainedDetector
from ..networks.blocks import choose_strides, conv_layers
from ..networks.density import PositionGaussians, ShrunkGaussian, enlarged, joined, smallest
from ..training import Training
from ..transforms.cutpaste import cutpaste

#: Kinds of patches that images get, by the value of the parameter `patches`: a class for each.
KINDS = {"normal": ("normal",), "scar": ("scar",), "union": ("union",), "3-way": ("normal", "scar")}
#: Principal components at each position of the map, and what is added to their variances.
N_COMPONENTS, REGULARIZATION = 64, 0.01
#: Largest stride of the levels of which the map is made.
LARGEST_STRIDE = 8
#: Deviation of the Gaussian filter of maps, as a share of each side.
BLUR = 0.03
#: Length of the last layer before the classes, as in the paper.
CODE_SIZE = 128
#: Stochastic gradient descent of the paper.
SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=3e-5)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        *second, _ = conv_layers(n_out, n_out)
        self.block = nn.Sequential(*conv_layers(n_in, n_out, stride=stride), *second)
        *shortcut, _ = conv_layers(n_in, n_out, 1, stride)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x):
        return F.relu(self.block(x) + self.shortcut(x))


class Encoder(nn.ModuleList):
    """Feature maps of each level, from the finest to the coarsest."""

    def __init__(self, image_shape, *, width):
        strides = choose_strides(image_shape)
        widths = [width * min(8, 2**level) for level in range(len(strides))]
        ins = [image_shape[0], *widths]
        super().__init__(ResidualBlock(a, b, stride) for a, b, stride in zip(ins, widths, strides))

    def forward(self, x):
        maps = []
        for block in self:
            x = block(x)
            maps.append(x)
        return maps


class OwnEncoder(nn.Module):
    """A user's module, which gives a feature map (n, c, h, w) or several, as an encoder that gives a list."""

    def __init__(self, image_shape, make):
        super().__init__()
        self.module = None if isinstance(make, nn.Module) else make(image_shape)
        if not isinstance(self.module, nn.Module):
            raise TypeError(
                "backbone must be a function that makes a new torch module for images of a shape (C, H, W), "
                f"got {make!r}"
            )

    def forward(self, x):
        maps = self.module(x)
        maps = [maps] if isinstance(maps, torch.Tensor) else list(maps)
        if not maps or any(m.ndim != 4 for m in maps):
            raise ValueError(
                f"backbone must give maps (n, c, h, w), got {[tuple(m.shape) for m in maps]}; leave out what "
                "pools them"
            )
        return maps


class CutPasteNetwork(nn.Module):
    """Parts `encoder`, `head` and `classifier`, and the Gaussians `density` of the encoder's features.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    n_classes, n_images : int
        Number of classes, and of images to which the Gaussians are fitted.
    encoder : nn.Module
        Module from images to a list of feature maps, of which the last is pooled to the features.
    hidden_size, n_layers : int
    """

    def __init__(self, image_shape, n_classes, n_images, encoder, *, hidden_size, n_layers):
        super().__init__()
        self.encoder, self.image_size = encoder, image_shape[1:]
        with torch.no_grad():
            maps = encoder.eval()(torch.zeros(1, *image_shape))
        n_features, maps = maps[-1].shape[1], self._fine(maps)
        sizes = [n_features, *[hidden_size] * n_layers, CODE_SIZE]
        layers = []
        for a, b in zip(sizes, sizes[1:]):
            layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
        self.head = nn.Sequential(*layers)
        self.classifier = nn.Linear(CODE_SIZE, n_classes)
        self.density = nn.Module()
        self.density.image = ShrunkGaussian(n_features, n_images)
        n_channels, size = sum(m.shape[1] for m in maps), smallest([m.shape[1:] for m in maps])
        self.density.places = PositionGaussians(n_channels, N_COMPONENTS, size)

    def _fine(self, maps):
        """Maps that are fine enough to show where something is, one at least."""
        wanted = [side / LARGEST_STRIDE for side in self.image_size]
        return [m for m in maps if m.shape[2] >= wanted[0] and m.shape[3] >= wanted[1]] or maps[:1]

    def logits(self, features):
        return self.classifier(self.head(features))

    def forward(self, x):
        """Features (n, d) of images, and maps of features (n, c, h, w)."""
        maps = self.encoder(x)
        return maps[-1].mean((2, 3)), joined(self._fine(maps), nn.Identity())


class Classification(Training):
    """The network learns to tell images from themselves with a patch, of one kind or of two.

    Parameters
    ----------
    network : CutPasteNetwork
    kinds : sequence of str
        Kinds of patches. Class 0 are the images themselves, and the others follow in this order.
    """

    moves = {"optimizer": ["encoder", "head", "classifier"]}
    losses = ("train_loss",)
    validates = True

    def __init__(self, network, *, kinds, **options):
        self.kinds = kinds
        super().__init__(network, **options)

    def loss(self, network, x):
        images = torch.cat([x, *(cutpaste(x, None, None, kind=kind)[0] for kind in self.kinds)])
        classes = torch.arange(1 + len(self.kinds), device=x.device).repeat_interleave(len(x))
        # All classes in one batch: statistics of a batch of one class would tell the classes apart.
        return F.cross_entropy(network.logits(network.encoder(images)[-1].mean((2, 3))), classes)

    def step(self, network, x):
        self.move("optimizer", train_loss=self.loss(network, x))

    def validate(self, network, x):
        # The same patches in each epoch, so that early stopping compares networks and not draws.
        with seeded(0, x.device):
            return self.loss(network, x)

    def on_epoch_begin(self, net, **options):
        super().on_epoch_begin(net, **options)
        n_before = len(self.history) - 1
        # The first factor is 1.
        before, now = (1 + math.cos(math.pi * max(0, n) / self.max_epochs) for n in (n_before - 1, n_before))
        # Multiplied, not set: the rate may be a user's scheduler's, and a resumed fit has the stored one.
        for group in self.optimizer_.param_groups:
            group["lr"] *= now / before


class CutPaste(TrainedDetector):
    """CutPaste: a Gaussian of features that were learned by telling pasted patches.

    Patches of normal images are pasted elsewhere in them. A network learns to tell such images from those as
    they were. Its features, which have become sensitive to what does not belong, are described by a Gaussian.
    The score is the squared Mahalanobis distance of an image's features from those of normal images.

    Parameters
    ----------
    patches : {"3-way", "normal", "scar", "union"}, default="3-way"
        Kinds of patches. "normal" are upright rectangles, "scar" thin ones that are turned, "union" either.
        "3-way" has both, as two classes beside that of normal images.
    backbone : callable, default=None
        Function from the image shape (C, H, W) to an ``nn.Module``, which gives a feature map (n, c, h, w) of
        images in [0, 1], or several from the finest to the coarsest. It is trained on, from the weights that
        it has. None is a small residual network without learned weights.
    width : int, default=16
        Channels of the first level of that network. The next levels have 2, 4 and 8 times as many.
    hidden_size : int, default=512
        Width of the hidden layers between features and classes.
    n_layers : int, default=1
        Number of these layers. One more has 128 units.
    {parameters}

    Attributes
    ----------
    n_images_ : int
        Number of images to which the Gaussians were fitted.
    {attributes}

    See Also
    --------
    FeatureGaussian : The same Gaussian of features that were learned from photographs.
    skanomaly.synthesis.cutpaste : Patches, with their parameters.

    Notes
    -----
    :Family: synthetic anomalies
    :Trained on: normal images, with and without patches
    :Score: squared Mahalanobis distance of the features of the image
    :Map: Mahalanobis distance of the features at each position
    :Departures: a smaller residual network for ResNet-18; the map is that
        of a Gaussian for each position, where the paper scores patches by a network of their own; training
        images are neither shifted nor changed in color; {max_epochs steps} steps
    :Variants:
        * CutPaste (3-way): ``CutPaste()``
        * CutPaste (normal): ``CutPaste(patches="normal")``
        * CutPaste (scar): ``CutPaste(patches="scar")``

    Training is by stochastic gradient descent, whose rate falls along a cosine. `score_components` gives
    "distance", which is the score, and "probability", that of not being a normal image in the classes that
    were learned.

    References
    ----------
    .. [1] Li, C.-L., Sohn, K., Yoon, J., Pfister, T. (2021). "CutPaste: self-supervised learning for anomaly
       detection and localization". CVPR. `arXiv:2104.04015 <https://arxiv.org/abs/2104.04015>`_

    Examples
    --------
    >>> from skanomaly import CutPaste
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = CutPaste(width=2, hidden_size=16, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _steps = {"max_epochs": 500}

    _parameter_constraints = {
        "patches": [StrOptions(set(KINDS))],
        "backbone": [callable, None],
        "n_layers": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        *,
        patches="3-way",
        backbone=None,
        width=16,
        hidden_size=512,
        n_layers=1,
        max_epochs=None,
        batch_size=32,
        lr=0.03,
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
        self.patches = patches
        self.backbone = backbone
        self.n_layers = n_layers
        self._assign_shared(locals())

    def _prepare(self, images):
        self.n_images_ = len(images) - round(self.validation_fraction * len(images))

    def _check_own_attributes(self, attributes):
        n_images = attributes["n_images_"]
        if type(n_images) is not int or n_images < 2:
            raise ValueError(f"n_images_ cannot be {n_images!r}")

    def _build(self, image_shape):
        if self.backbone is None:
            encoder = Encoder(image_shape, width=self.width)
        else:
            encoder = OwnEncoder(image_shape, self.backbone)
        sizes = {"hidden_size": self.hidden_size, "n_layers": self.n_layers}
        n_classes = 1 + len(KINDS[self.patches])
        return CutPasteNetwork(image_shape, n_classes, self.n_images_, encoder, **sizes)

    def _train(self, run, network, images):
        run("classification", Classification, network, images, kinds=KINDS[self.patches], optimizer=SGD)

    def _measure(self, network, images):
        described, rows = Replay(network, network, images, self.device_), []

        def maps():
            for n, (features, of_map) in described:
                rows.append(features[:n])
                yield of_map[:n]

        network.density.places.fit(maps(), "pca", REGULARIZATION)
        network.density.image.fit_rows(torch.cat(rows), "ledoit_wolf")

    def _judge(self, network, x):
        features, maps = network(x)
        maps = enlarged(network.density.places(maps), self.image_shape_[1:], BLUR)
        distance = network.density.image(features)

        def probability():
            return 1 - network.logits(features).softmax(1)[:, 0]

        return Judgement(distance, maps, {"distance": distance, "probability": probability})

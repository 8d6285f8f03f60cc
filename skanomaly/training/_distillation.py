"""Distillation: students learn to give the features of a frozen teacher."""

import numpy as np
from torch.nn import functional as F

from ._training import Training


def direction_error(f, g):
    """1 - cos of each pair of flattened feature maps (n, c, h, w), (n,): 0 for a map and its multiples."""
    return 1 - F.cosine_similarity(f.flatten(1), g.flatten(1), dim=1)


def magnitude_error(f, g):
    """Mean squared difference of each pair of feature maps (n, c, h, w), (n,)."""
    return (f - g).square().flatten(1).mean(1)


def distillation_error(maps, targets, magnitude_weight):
    """Error of lists of feature maps, added up over layers, (n,).

    Parameters
    ----------
    maps, targets : sequence of (n, c, h, w) tensor
        Feature maps of the student and of the teacher.
    magnitude_weight : float
        Weight of the squared difference beside 1 - cos.
    """
    return sum(
        direction_error(f, g) + magnitude_weight * magnitude_error(f, g) for f, g in zip(maps, targets)
    )


class Described:
    """A batch of images with the feature maps of the teacher."""

    def __init__(self, x, targets):
        self.x, self.targets = x, targets

    def __len__(self):
        return len(self.x)

    def to(self, device):
        return Described(self.x.to(device), [target.to(device) for target in self.targets])


class DescribedImages:
    """Images to train on, with feature maps that were computed before: the teacher runs once for each image.

    Parameters
    ----------
    images : Images
    targets : sequence of (n, c, h, w) tensor
        Feature maps of all images.
    """

    def __init__(self, images, targets):
        self.images, self.targets, self.held_out = images, targets, images.held_out

    def __len__(self):
        return len(self.images)

    def n_batches(self, batch_size):
        return self.images.n_batches(batch_size)

    def epoch(self, batch_size):
        """Yield batches as `Images.epoch` does, each with its feature maps."""
        for rows in np.array_split(self.images.order(batch_size), self.n_batches(batch_size)):
            yield Described(self.images[rows], [target[rows] for target in self.targets])


class Distillation(Training):
    """The part `cloner` learns to give the feature maps of the frozen part `source`.

    It is trained on `Images`, or on `DescribedImages`.

    Parameters
    ----------
    network : nn.Module
        Network with these parts and a method `source_maps`.
    magnitude_weight : float
    """

    moves = {"optimizer": ["cloner"]}
    losses = ("train_loss",)
    validates = True

    def __init__(self, network, *, magnitude_weight, **options):
        self.magnitude_weight = magnitude_weight
        super().__init__(network, **options)

    def loss(self, network, x, targets):
        return distillation_error(network.cloner(x), targets, self.magnitude_weight).mean()

    def step(self, network, x):
        x, targets = (x.x, x.targets) if isinstance(x, Described) else (x, network.source_maps(x))
        self.move("optimizer", train_loss=self.loss(network, x, targets))

    def validate(self, network, x):
        return self.loss(network, x, network.source_maps(x))

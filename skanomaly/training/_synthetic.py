"""Synthetic anomalies: training of a network to find what was worked into normal images."""

import torch
from torch.nn import functional as F

from .._random import seeded
from ..transforms.defects import apply_to_some, check_labels, foreign_to
from ._training import Training


def cross_entropy(logits, labels):
    """Binary cross-entropy -y log p - (1 - y) log(1 - p) of each pixel, for labels y from 0 to 1."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def squared_difference(logits, labels):
    """Squared difference (p - y)^2 of each pixel."""
    return (logits.sigmoid() - labels).square()


def focal_cross_entropy(logits, labels):
    """Cross-entropy of each pixel times (p - y)^2 (Li et al. 2020); for y = 0 and 1 it is the focal loss."""
    return squared_difference(logits, labels) * cross_entropy(logits, labels)


#: Losses of logits and labels, both (n, 1, h, w), in each pixel.
LOSSES = {"bce": cross_entropy, "mse": squared_difference, "focal": focal_cross_entropy}


class SyntheticAnomalyTraining(Training):
    """Minimise the mean loss of the network's logits, given images into which anomalies were worked.

    Parameters
    ----------
    network : nn.Module
        Network that maps images (n, c, h, w) to logits (n, 1, h, w). All its parts are trained.
    synthesis : callable (images, sources, generator) -> (images, masks, labels)
    loss : callable (logits, labels) -> losses (n, 1, h, w)
    sources : Images, default=None
        Images from which something foreign is taken. None takes other images of the same batch, and for
        CutPaste the image itself.
    probability : float, default=1.0
        Probability that an image is changed.
    """

    losses = ("train_loss",)
    validates = True
    least_held_out = 2  # as each is the source of another

    def __init__(self, network, *, synthesis, loss, sources=None, probability=1.0, **options):
        self.synthesis, self.loss, self.sources, self.probability = synthesis, loss, sources, probability
        self.moves = {"optimizer": [name for name, _ in network.named_children()]}
        super().__init__(network, **options)

    def mean_loss(self, network, x):
        if self.sources is None:
            foreign = foreign_to(x, x.roll(-1, 0), self.synthesis)
        else:
            foreign = self.sources[torch.randint(len(self.sources), (len(x),)).numpy()].to(x)
        made, _, labels = apply_to_some(self.synthesis, x, foreign, torch.default_generator, self.probability)
        if self.n_steps == 1:
            check_labels(labels)
        return self.loss(network(made), labels).mean()

    def step(self, network, x):
        self.move("optimizer", train_loss=self.mean_loss(network, x))

    def validate(self, network, x):
        # The same anomalies in each epoch, so that early stopping compares networks and not draws.
        with seeded(0, x.device):
            return self.mean_loss(network, x)

"""MemoryTraining: training of an autoencoder with a memory (MemAE)."""

import torch

from .._losses import squared_error
from ._training import Training


def entropy(weights):
    """Mean entropy of the weights (..., n_slots) of memory items; low if few items have large weights."""
    return -(weights * torch.log(weights + 1e-12)).sum(-1).mean()


class MemoryTraining(Training):
    """Minimise the squared error plus `entropy_weight` times the entropy of the weights of memory items.

    Parameters
    ----------
    network : MemoryAutoEncoder
    entropy_weight : float
    """

    moves = {"optimizer": ["encoder", "memory", "decoder"]}
    losses = "reconstruction_loss", "entropy", "train_loss"
    validates = True

    def __init__(self, network, *, entropy_weight, **options):
        self.entropy_weight = entropy_weight
        super().__init__(network, **options)

    def step(self, network, x):
        y, weights = network.recall(x)
        error, spread = squared_error(y, x).mean(), entropy(weights)
        self.record(reconstruction_loss=error, entropy=spread)
        self.move("optimizer", train_loss=error + self.entropy_weight * spread)

    def validate(self, network, x):
        y, weights = network.recall(x)
        return squared_error(y, x).mean() + self.entropy_weight * entropy(weights)

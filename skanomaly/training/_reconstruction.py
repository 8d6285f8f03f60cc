"""Reconstruction: training of a network to reconstruct its input."""

from torch import nn

from .._losses import squared_error
from ._training import Training


class Reconstruction(Training):
    """Minimise the mean error of the network's reconstructions.

    Parameters
    ----------
    network : nn.Module
    error : callable (predictions, images) -> map (n, h, w), default=squared_error
    predict_images : callable (network, images) -> predictions, default=nn.Module.__call__
        Forward pass. Its predictions (reconstructions, or means and log-variances) are passed to `error`.
    corrupt : callable (images) -> images, default=None
        Corruption of the input in training. Predictions are compared with the uncorrupted images.
    parts : sequence of str, default=("encoder", "decoder")
        Names of the parts that are trained; None trains all parts.
    """

    losses = ("train_loss",)
    validates = True

    def __init__(
        self,
        network,
        *,
        error=squared_error,
        predict_images=nn.Module.__call__,
        corrupt=None,
        parts=("encoder", "decoder"),
        **options,
    ):
        self.error, self.predict_images, self.corrupt = error, predict_images, corrupt
        self.moves = {"optimizer": parts or [name for name, _ in network.named_children()]}
        super().__init__(network, **options)

    def step(self, network, x):
        given = x if self.corrupt is None else self.corrupt(x)
        self.move("optimizer", train_loss=self.error(self.predict_images(network, given), x).mean())

    def validate(self, network, x):
        # No corruption, as in scoring.
        return self.error(self.predict_images(network, x), x).mean()

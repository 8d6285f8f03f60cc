"""Reconstruction: an encoder and a decoder learn to repeat their input."""

from ._training import Training


class Reconstruction(Training):
    """Minimise the mean error between images and network(images).

    Parameters
    ----------
    network : nn.Module with parts `encoder` and `decoder`
    error : callable (reconstructions, images) -> map (n, h, w)
    """

    moves = {"optimizer": ["encoder", "decoder"]}
    losses = ("train_loss",)
    validates = True

    def __init__(self, network, *, error, **options):
        self.error = error
        super().__init__(network, **options)

    def step(self, network, x):
        self.move("optimizer", train_loss=self.validate(network, x))

    def validate(self, network, x):
        return self.error(network(x), x).mean()

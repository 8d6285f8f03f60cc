"""Variational autoencoding: repeat images through codes that are drawn, and keep those near the prior."""

from ..networks.gaussian import draw, kl_divergence
from ._training import Training


def negative_elbo(network, x, *, error, kl_weight):
    """Mean error from the mean code plus the weighted divergence of the code, (n,)."""
    mean, log_variance = network.posterior(x)
    return error(network.decoder(mean), x).mean((1, 2)) + kl_weight * kl_divergence(mean, log_variance)


class Variational(Training):
    """Minimise the mean error plus the weighted divergence of the codes from N(0, I) (the negative ELBO).

    Parameters
    ----------
    network : nn.Module with parts `encoder` and `decoder`, and `posterior(x)`
    error : callable (reconstructions, images) -> map (n, h, w)
    kl_weight : float
        Of the divergence, a mean over the numbers of a code as the error is one over pixels.
    """

    moves = {"optimizer": ["encoder", "decoder"]}
    losses = "reconstruction_loss", "kl_loss", "train_loss"
    validates = True

    def __init__(self, network, *, error, kl_weight, **options):
        self.error, self.kl_weight = error, kl_weight
        super().__init__(network, **options)

    def step(self, network, x):
        posterior = network.posterior(x)
        error = self.error(network.decoder(draw(*posterior)), x).mean()
        divergence = kl_divergence(*posterior).mean()
        self.record(reconstruction_loss=error, kl_loss=divergence)
        self.move("optimizer", train_loss=error + self.kl_weight * divergence)

    def validate(self, network, x):
        """From the mean codes, so that it does not depend on a draw."""
        return negative_elbo(network, x, error=self.error, kl_weight=self.kl_weight).mean()

"""Variational: training of a variational autoencoder (VAE)."""

from ..networks.gaussian import draw, kl_divergence
from ._training import Training


def negative_elbo(network, x, *, error, kl_weight):
    """Negative ELBO (n,) of images: error of the decoded mean code, plus the code's weighted divergence."""
    mean, log_variance = network.posterior(x)
    return error(network.decoder(mean), x).mean((1, 2)) + kl_weight * kl_divergence(mean, log_variance)


class Variational(Training):
    """Minimise the negative ELBO: error of a decoded random code, plus the weighted divergence from N(0, I).

    Parameters
    ----------
    network : nn.Module
        Module with the parts `encoder` and `decoder`, and a method `posterior(x)` that returns mean and
        log-variance of the codes.
    error : callable (reconstructions, images) -> map (n, h, w)
    kl_weight : float
        Weight of the divergence, which is a mean over the numbers of a code. The error is a mean over pixels.
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
        # By mean codes: with random codes the losses of two epochs would also differ by chance.
        return negative_elbo(network, x, error=self.error, kl_weight=self.kl_weight).mean()

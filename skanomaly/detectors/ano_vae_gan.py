"""AnoVAEGAN: a variational autoencoder that is trained to deceive a discriminator."""

from .._losses import absolute_error
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ConvDiscriminator
from ..networks.autoencoder import VariationalAutoEncoder
from ..networks.gaussian import draw, kl_divergence
from ..training import Training, discriminator_loss, generator_loss


class AnoVAEGANNetwork(VariationalAutoEncoder):
    """Network with the parts `encoder`, `decoder` and `discriminator`."""

    def __init__(self, image_shape, latent_size, *, width, n_levels, **options):
        super().__init__(image_shape, latent_size, width=width, n_levels=n_levels, **options)
        self.discriminator = ConvDiscriminator(image_shape, width=width, n_levels=n_levels)


class VariationalAdversarial(Training):
    """Each batch trains the discriminator, then encoder and decoder by a weighted sum of three losses.

    Parameters
    ----------
    network : AnoVAEGANNetwork
    kl_weight, adversarial_weight : float
        Weights lambda_2 and lambda_3 in the paper. If `adversarial_weight` is 0, no discriminator is used.
    """

    moves = {"optimizer": ["encoder", "decoder"], "optimizer_discriminator": ["discriminator"]}
    losses = "discriminator_loss", "reconstruction_loss", "kl_loss", "adversarial_loss", "train_loss"
    betas = 0.5, 0.999

    def __init__(self, network, *, kl_weight, adversarial_weight, **options):
        self.kl_weight, self.adversarial_weight = kl_weight, adversarial_weight
        # A loss in this list that no step records would be nan in the history, and cause a warning.
        if not adversarial_weight:
            self.losses = "reconstruction_loss", "kl_loss", "train_loss"
        super().__init__(network, **options)

    def step(self, network, x):
        posterior, discriminator = network.posterior(x), network.discriminator
        y = network.decoder(draw(*posterior))
        error, divergence = absolute_error(y, x).mean(), kl_divergence(*posterior).mean()
        self.record(reconstruction_loss=error, kl_loss=divergence)
        loss = error + self.kl_weight * divergence
        if self.adversarial_weight:
            opposed = discriminator_loss(discriminator(x), discriminator(y.detach()))
            self.move("optimizer_discriminator", discriminator_loss=opposed)
            # Computed again, because the discriminator has just been updated.
            adversarial = generator_loss(discriminator(y))
            self.record(adversarial_loss=adversarial)
            loss = loss + self.adversarial_weight * adversarial
        self.move("optimizer", train_loss=loss)


class AnoVAEGAN(TrainedDetector):
    """Variational autoencoder with adversarial training (AnoVAEGAN).

    A variational autoencoder learns to reconstruct normal images, and a discriminator learns to tell
    reconstructions from images. The autoencoder also learns to deceive the discriminator; this favours sharp
    reconstructions. The score is the absolute error averaged over pixels; the map is the absolute error of
    each pixel.

    Parameters
    ----------
    kl_weight : float, default=0.005
        Weight, in the loss, of the Kullback-Leibler (KL) divergence of the codes from N(0, I). The divergence
        is averaged over the numbers of a code. The mean absolute error of the pixels has the weight 1.
    adversarial_weight : float, default=0.005
        Weight of the adversarial loss, which is small if the discriminator takes reconstructions for images.
        With 0 the detector is a variational autoencoder without a discriminator.
    {size}
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    VAE : Variational autoencoder without a discriminator.
    SSLAnoVAE : AnoVAEGAN with a second encoder, which learns from randomly changed copies of the images.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: mean absolute error of the pixels
    :Map: absolute error of each pixel
    :Departures: the paper does not state the weights of its losses, so the weights here have the order of
        magnitude of SSLAnoVAE's; encoder and decoder are those of AutoEncoder; images are judged by the mean
        of their code distribution; log-variances are clamped to [-10, 10]

    References
    ----------
    .. [1] Baur, C., Wiestler, B., Albarqouni, S., Navab, N. (2018). "Deep autoencoding models for
       unsupervised anomaly segmentation in brain MR images". BrainLes. `arXiv:1804.04488
       <https://arxiv.org/abs/1804.04488>`_

    Examples
    --------
    >>> from skanomaly import AnoVAEGAN
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = AnoVAEGAN(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)

    def __init__(
        self,
        *,
        kl_weight=0.005,
        adversarial_weight=0.005,
        latent_size=16,
        hidden_size=2048,
        width=16,
        n_levels=None,
        bottleneck="dense",
        max_epochs=None,
        batch_size=64,
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
        self.kl_weight = kl_weight
        self.adversarial_weight = adversarial_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        return AnoVAEGANNetwork(image_shape, **self._network_size())

    def _train(self, run, network, images):
        weights = {"kl_weight": self.kl_weight, "adversarial_weight": self.adversarial_weight}
        run("reconstruction", VariationalAdversarial, network, images, **weights)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        maps = absolute_error(network(x), x)
        return Judgement.of_map(maps, kl=lambda: kl_divergence(*network.posterior(x)))

"""GANomaly: an image is anomalous if the codes of the image and of its reconstruction differ."""

from .._losses import absolute_error, feature_error
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ConvDiscriminator
from ..networks.autoencoder import ConvAutoEncoder, ConvEncoder
from ..training import Training, discriminator_loss


class GANomalyNetwork(ConvAutoEncoder):
    """Network with the parts `encoder`, `decoder`, `second_encoder` (of reconstructions), `discriminator`."""

    def __init__(self, image_shape, latent_size, *, width, n_levels, **options):
        size = {"width": width, "n_levels": n_levels}
        super().__init__(image_shape, latent_size, **size, **options)
        self.second_encoder = ConvEncoder(image_shape, latent_size, **size, **options)
        self.discriminator = ConvDiscriminator(image_shape, **size)

    def codes(self, x):
        """Codes of images, codes of their reconstructions, and the reconstructions."""
        z = self.encoder(x)
        y = self.decoder(z)
        return z.flatten(1), self.second_encoder(y).flatten(1), y


class EncoderDecoderEncoder(Training):
    """Each batch trains the generator (encoder, decoder and second encoder), then the discriminator.

    Parameters
    ----------
    network : GANomalyNetwork
    weights : dict of str to float
        Weights of the losses "adversarial", "reconstruction" and "code".
    """

    moves = {
        "optimizer": ["encoder", "decoder", "second_encoder"],
        "optimizer_discriminator": ["discriminator"],
    }
    losses = "reconstruction_loss", "code_loss", "adversarial_loss", "train_loss", "discriminator_loss"
    betas = 0.5, 0.999

    def __init__(self, network, *, weights, **options):
        self.weights = weights
        super().__init__(network, **options)

    def step(self, network, x):
        discriminator = network.discriminator
        z, again, y = network.codes(x)
        terms = {
            "reconstruction": absolute_error(y, x).mean(),
            "code": feature_error(z, again).mean(),
            # Feature matching, as in the paper: the discriminator's output itself is not used.
            "adversarial": feature_error(discriminator.features(x), discriminator.features(y)).mean(),
        }
        self.record(**{f"{name}_loss": term for name, term in terms.items()})
        self.move("optimizer", train_loss=sum(self.weights[name] * term for name, term in terms.items()))
        # As in the public code, y was made before the generator's step.
        loss = 0.5 * discriminator_loss(discriminator(x), discriminator(y.detach()))
        self.move("optimizer_discriminator", discriminator_loss=loss)


class GANomaly(TrainedDetector):
    """GANomaly: encoder, decoder, encoder.

    An image is encoded and decoded, and a second encoder encodes the reconstruction. The networks are trained
    on normal images, against a discriminator, so that the two codes of a normal image are similar. The score
    is the mean squared difference between the two codes. The map is the absolute error of each pixel.

    Parameters
    ----------
    reconstruction_weight : float, default=50.0
        Weight of the mean absolute error of the pixels.
    code_weight : float, default=1.0
        Weight of the mean squared difference between the codes.
    adversarial_weight : float, default=1.0
        Weight of the mean squared difference between the discriminator's features of the image and those of
        the reconstruction.
    {size}
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    ConstrainedAE : Autoencoder with one encoder for both codes; its score is the residual.
    AnoGAN : Detector that searches for the code of an image.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: mean squared difference between the codes of image and reconstruction
    :Map: absolute error of each pixel
    :Departures: encoders and decoder are those of AutoEncoder with a code of 16 numbers; those of MedIAnomaly
        have no batch normalisation in the dense layers, and another discriminator; scores are not scaled to
        the range of the test images; to judge images, batch normalisation uses the statistics of training,
        whereas the public code uses those of the test batch; a discriminator whose loss vanishes is not
        initialised again; encoders and decoder start from torch's default weights; {max_epochs steps}
        training steps, 15,250 in MedIAnomaly on RSNA

    References
    ----------
    .. [1] Akcay, S., Atapour-Abarghouei, A., Breckon, T. P. (2018). "GANomaly: Semi-supervised anomaly
       detection via adversarial training". ACCV. `arXiv:1805.06725 <https://arxiv.org/abs/1805.06725>`_

    Examples
    --------
    >>> from skanomaly import GANomaly
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = GANomaly(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)

    def __init__(
        self,
        *,
        reconstruction_weight=50.0,
        code_weight=1.0,
        adversarial_weight=1.0,
        latent_size=16,
        hidden_size=2048,
        width=16,
        n_levels=None,
        bottleneck="dense",
        max_epochs=None,
        batch_size=64,
        lr=0.0002,
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
        self.reconstruction_weight = reconstruction_weight
        self.code_weight = code_weight
        self.adversarial_weight = adversarial_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        return GANomalyNetwork(image_shape, **self._network_size())

    def _train(self, run, network, images):
        weights = {
            "reconstruction": self.reconstruction_weight,
            "code": self.code_weight,
            "adversarial": self.adversarial_weight,
        }
        run("adversarial", EncoderDecoderEncoder, network, images, weights=weights)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        z, again, y = network.codes(x)
        score, maps = feature_error(z, again), absolute_error(y, x)
        return Judgement(score, maps, {"code": score, "residual": maps.mean((1, 2))})

"""ConstrainedAE: an autoencoder that learns to give an image and its reconstruction the same code."""

from .._losses import squared_error
from ..base import Judgement, TrainedDetector
from ..networks.autoencoder import ConvAutoEncoder
from ..training import Training


class Constrained(Training):
    """Minimise the squared error of the pixels plus the weighted squared difference of the two codes.

    The codes are those of an image and of its reconstruction.

    Parameters
    ----------
    network : ConvAutoEncoder
    constraint_weight : float
    """

    moves = {"optimizer": ["encoder", "decoder"]}
    losses = "reconstruction_loss", "constraint_loss", "train_loss"
    validates = True

    def __init__(self, network, *, constraint_weight, **options):
        self.constraint_weight = constraint_weight
        super().__init__(network, **options)

    def terms(self, network, x):
        z = network.encoder(x)
        y = network.decoder(z)
        # As in the public code, z is not detached: each code moves towards the other. The running statistics
        # of the encoder's BatchNorm include reconstructions, although scoring encodes images only.
        return squared_error(y, x).mean(), (z - network.encoder(y)).square().mean()

    def step(self, network, x):
        error, constraint = self.terms(network, x)
        self.record(reconstruction_loss=error, constraint_loss=constraint)
        self.move("optimizer", train_loss=error + self.constraint_weight * constraint)

    def validate(self, network, x):
        error, constraint = self.terms(network, x)
        return error + self.constraint_weight * constraint


class ConstrainedAE(TrainedDetector):
    """Constrained autoencoder.

    The autoencoder learns to reconstruct normal images, and to give an image and its reconstruction the same
    code. The purpose is that images that look alike have similar codes. The score is the squared error
    averaged over pixels; the map is the squared error of each pixel.

    Parameters
    ----------
    constraint_weight : float, default=1.0
        Weight, in the loss, of the mean squared difference between the codes of image and reconstruction. The
        mean squared error of the pixels has the weight 1.
    {size}
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    AutoEncoder : The same network without the constraint.
    AdversarialAutoEncoder : Autoencoder that has this constraint with ``constrained=True``.

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: mean squared error of the pixels
    :Map: squared error of each pixel
    :Departures: {max_epochs steps} training steps, 15,250 in MedIAnomaly on RSNA

    The network is that of AutoEncoder. The running statistics of the encoder's batch normalisation are those
    of images and reconstructions, about half each, as in the public code, although images alone are judged
    with them.

    References
    ----------
    .. [1] Chen, X., Konukoglu, E. (2018). "Unsupervised detection of lesions in brain MRI using constrained
       adversarial auto-encoders". MIDL. `arXiv:1806.04972 <https://arxiv.org/abs/1806.04972>`_
    .. [2] Cai, Y., Zhang, W., Chen, H., Cheng, K.-T. (2025). "MedIAnomaly: A comparative study of anomaly
       detection in medical images". Medical Image Analysis. `arXiv:2404.04518
       <https://arxiv.org/abs/2404.04518>`_

    Examples
    --------
    >>> from skanomaly import ConstrainedAE
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = ConstrainedAE(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)

    def __init__(
        self,
        *,
        constraint_weight=1.0,
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
        self.constraint_weight = constraint_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        return ConvAutoEncoder(image_shape, **self._network_size())

    def _train(self, run, network, images):
        run("reconstruction", Constrained, network, images, constraint_weight=self.constraint_weight)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        return Judgement.of_map(squared_error(network(x), x))

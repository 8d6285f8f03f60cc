"""ContextVAE: a variational autoencoder that also fills in an erased square."""

from functools import partial
from numbers import Real

from sklearn.utils._param_validation import Interval

from .._losses import absolute_error, gradient_map, squared_error
from ..base import Judgement, TrainedDetector
from ..networks.autoencoder import VariationalAutoEncoder
from ..networks.gaussian import draw, kl_divergence
from ..training import Training, negative_elbo
from ..transforms.corruptions import erase_squares


class ContextVariational(Training):
    """One network learns as a variational autoencoder of whole images and as a context autoencoder.

    Parameters
    ----------
    network : VariationalAutoEncoder
    erase : callable (images) -> images
    kl_weight, context_weight : float
    """

    moves = {"optimizer": ["encoder", "decoder"]}
    losses = "reconstruction_loss", "kl_loss", "context_loss", "train_loss"
    validates = True

    def __init__(self, network, *, erase, kl_weight, context_weight, **options):
        self.erase, self.kl_weight, self.context_weight = erase, kl_weight, context_weight
        super().__init__(network, **options)

    def step(self, network, x):
        posterior = network.posterior(x)
        error = squared_error(network.decoder(draw(*posterior)), x).mean()
        divergence = kl_divergence(*posterior).mean()
        # No draw and no divergence here, as in the paper. Some public code compares with the erased image,
        # which leaves nothing to fill in. Running statistics of BatchNorm blend whole and erased images.
        context = squared_error(network(self.erase(x)), x).mean()
        self.record(reconstruction_loss=error, kl_loss=divergence, context_loss=context)
        share = self.context_weight
        loss = (1 - share) * (error + self.kl_weight * divergence) + share * context
        self.move("optimizer", train_loss=loss)

    def validate(self, network, x):
        # Without random squares and draws, so that the losses of two epochs can be compared.
        return negative_elbo(network, x, error=squared_error, kl_weight=self.kl_weight).mean()


class ContextVAE(TrainedDetector):
    """Context-encoding variational autoencoder (ceVAE).

    A variational autoencoder also learns, as ContextAE does, to fill in a square that was erased. The score
    is the negative evidence lower bound (ELBO) of an image. The map is the error of each pixel times the
    derivative of the ELBO with respect to that pixel. It is large where the reconstruction differs from the
    image and where, at the same time, another value of the pixel would make the image more normal.

    Parameters
    ----------
    kl_weight : float, default=0.005
        Weight of the Kullback-Leibler (KL) divergence of the codes from N(0, I) beside the mean squared
        error. The divergence is averaged over the numbers of a code.
    context_weight : float, default=0.5
        Weight of the images with an erased square in the loss, lambda in the paper. Whole images have the
        weight 1 - lambda.
    erased_area : float, default=0.024
        Area of the erased square as a share of the image: 10 x 10 pixels of 64 x 64. The square lies at a
        random place and gets the lowest intensity. If an image is narrower than the square, the part that
        fits is erased.
    {size}
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    ContextAE : Form with a fixed code instead of a distribution of codes, and the error as the map.
    VAE : Variational autoencoder of whole images, with other maps made of derivatives.

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: negative ELBO: mean squared error plus weighted divergence of the code
    :Map: absolute error of each pixel times the absolute derivative of the ELBO with respect to it
    :Departures: every image has its own square and is compared with the whole image, where the public code of
        Baur et al. (2021) has one square for a batch and compares with the erased image; images are judged by
        the mean of their code distribution; network and learning rate are those of MedIAnomaly; log-variances
        stay within -10 and 10

    `score_components` gives the negative bound ("elbo"), its parts "residual" and "kl", and the mean of the
    map, "product".

    References
    ----------
    .. [1] Zimmerer, D., Kohl, S. A. A., Petersen, J., Isensee, F., Maier-Hein, K. H. (2018).
       "Context-encoding variational autoencoder for unsupervised anomaly detection". `arXiv:1812.05941
       <https://arxiv.org/abs/1812.05941>`_

    Examples
    --------
    >>> from skanomaly import ContextVAE
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = ContextVAE(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)

    _parameter_constraints = {
        "context_weight": [Interval(Real, 0, 1, closed="both")],
        "erased_area": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(
        self,
        *,
        kl_weight=0.005,
        context_weight=0.5,
        erased_area=0.024,
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
        self.context_weight = context_weight
        self.erased_area = erased_area
        self._assign_shared(locals())

    def _build(self, image_shape):
        return VariationalAutoEncoder(image_shape, **self._network_size())

    def _train(self, run, network, images):
        erase = partial(erase_squares, area=self.erased_area, value=self._image_range[0])
        options = {"erase": erase, "kl_weight": self.kl_weight, "context_weight": self.context_weight}
        run("reconstruction", ContextVariational, network, images, **options)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        bound = partial(negative_elbo, network, error=squared_error, kl_weight=self.kl_weight)
        score, y = bound(x), network(x)
        # The error is absolute here, as in the public code, although the bound has the squared one.
        maps = absolute_error(y, x) * gradient_map(bound, x)
        components = {
            "elbo": score,
            "residual": lambda: squared_error(y, x).mean((1, 2)),
            "kl": lambda: kl_divergence(*network.posterior(x)),
            "product": lambda: maps.mean((1, 2)),
        }
        return Judgement(score, maps, components)

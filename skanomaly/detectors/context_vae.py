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
    """Train one network both as a variational autoencoder of whole images and as a context autoencoder.

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
        # As in the paper, this term uses the mean code and has no divergence. Some public code compares with
        # the erased image, so that nothing has to be filled in. The running statistics of BatchNorm are a
        # blend of whole and erased images.
        context = squared_error(network(self.erase(x)), x).mean()
        self.record(reconstruction_loss=error, kl_loss=divergence, context_loss=context)
        share = self.context_weight
        loss = (1 - share) * (error + self.kl_weight * divergence) + share * context
        self.move("optimizer", train_loss=loss)

    def validate(self, network, x):
        # No random squares and no drawn codes, so that the losses of two epochs can be compared.
        return negative_elbo(network, x, error=squared_error, kl_weight=self.kl_weight).mean()


class ContextVAE(TrainedDetector):
    """Context-encoding variational autoencoder (ceVAE).

    A variational autoencoder also learns, as ContextAE does, to fill in a square that was erased. The score
    is the negative evidence lower bound (ELBO) of an image. The map is the absolute error of each pixel times
    the absolute derivative of the ELBO with respect to that pixel. The map is large where the reconstruction
    differs from the image and, at the same time, a small change of the pixel changes the score strongly.

    Parameters
    ----------
    kl_weight : float, default=0.005
        Weight of the Kullback-Leibler (KL) divergence of the codes from N(0, I), in the ELBO and in the loss.
        The divergence is averaged over the numbers of a code. The mean squared error of the pixels has the
        weight 1.
    context_weight : float, default=0.5
        Weight lambda, in [0, 1], of the loss of images with an erased square. The loss of whole images has
        the weight 1 - lambda.
    erased_area : float, default=0.024
        Area of the erased square, as a share of the image's area, in (0, 1). The default is 10 x 10 pixels of
        64 x 64. The square lies at a random place, and its pixels get the lowest intensity. If an image is
        narrower than the square, the part that fits is erased.
    {size}
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    ContextAE : Autoencoder with a fixed code instead of a distribution of codes; its map is the error.
    VAE : Variational autoencoder of whole images; other maps are made from derivatives.

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: negative ELBO: mean squared error plus weighted divergence of the code
    :Map: absolute error of each pixel times the absolute derivative of the ELBO with respect to the pixel
    :Departures: a square is drawn for each image and the reconstruction is compared with the whole image,
        whereas the public code of Baur et al. (2021) draws one square for a batch and compares with the
        erased image; images are judged by the mean of their code distribution; network and learning rate are
        those of MedIAnomaly; log-variances are clamped to [-10, 10]; {max_epochs steps} training steps,
        15,250 in MedIAnomaly on RSNA

    The components of `score_components` are "elbo" (the score), "residual" (the mean squared error), "kl"
    (the divergence, without its weight) and "product" (the mean of the map).

    The running statistics of batch normalisation are those of whole and erased images, about half each,
    although whole images alone are judged with them.

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
        # The error is absolute here, as in the public code, although the bound contains the squared error.
        maps = absolute_error(y, x) * gradient_map(bound, x)
        components = {
            "elbo": score,
            "residual": lambda: squared_error(y, x).mean((1, 2)),
            "kl": lambda: kl_divergence(*network.posterior(x)),
            "product": lambda: maps.mean((1, 2)),
        }
        return Judgement(score, maps, components)

"""VAE: an autoencoder whose codes are distributions near N(0, I)."""

from functools import partial

from sklearn.utils._param_validation import StrOptions

from .._losses import absolute_error, gradient_map, squared_error
from ..base import Judgement, TrainedDetector
from ..networks.autoencoder import VariationalAutoEncoder
from ..networks.gaussian import kl_divergence
from ..training import Variational, negative_elbo

ERRORS = {"l2": squared_error, "l1": absolute_error}
MAPS = {"residual", "elbo_gradient", "residual_gradient", "kl_gradient", "combination"}


class VAE(TrainedDetector):
    """Variational autoencoder.

    The encoder gives each image a Gaussian distribution of codes, and training keeps these distributions near
    N(0, I). Images unlike the normal images are reconstructed worse. By default the map is the error of each
    pixel. Other maps show derivatives with respect to each pixel: that of the evidence lower bound (ELBO), or
    of one of its two parts, the mean error and the divergence of the code distribution from N(0, I). The
    score is the mean of the map.

    Parameters
    ----------
    kl_weight : float, default=0.005
        Weight of the Kullback-Leibler (KL) divergence of the codes from N(0, I), in the ELBO and in the loss.
        The divergence is averaged over the numbers of a code. The error, averaged over pixels, has the weight
        1.
    loss : {"l2", "l1"}, default="l2"
        Error of a pixel, in training and in the score: squared or absolute.
    score_component : {"residual", "elbo_gradient", "residual_gradient", "kl_gradient", "combination"}, \
            default="residual"
        Quantity that the map shows; the score is the mean of the map. "residual" is the error.
        "elbo_gradient" is the absolute derivative of the ELBO with respect to each pixel,
        "residual_gradient" that of the mean error alone, and "kl_gradient" that of the divergence alone.
        "combination" is the product of "residual" and "kl_gradient".
    {size}
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    AutoEncoder : The same network with a fixed code instead of a distribution of codes.
    SSLAnoVAE : VAE with a second encoder, which learns from randomly changed copies of the images.

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: mean error over pixels, or mean of another map
    :Map: error of each pixel, or a derivative with respect to each pixel
    :Departures: images are judged by the mean of their code distribution, whereas the public code draws a
        code; log-variances are clamped to [-10, 10]; {max_epochs steps} training steps, 15,250 in MedIAnomaly
        on RSNA
    :Variants:
        * VAE by the gradient of the ELBO: ``VAE(score_component="elbo_gradient")``
        * VAE by the gradient of the error: ``VAE(score_component="residual_gradient")``
        * VAE by the gradient of the KL divergence: ``VAE(score_component="kl_gradient")``
        * VAE by error times KL gradient: ``VAE(score_component="combination")``

    The network and the weight of the divergence are those of MedIAnomaly [2]_, whose hidden size is 1024.
    Scores from derivatives are compared in [3]_.

    References
    ----------
    .. [1] Kingma, D. P., Welling, M. (2014). "Auto-encoding variational Bayes". ICLR. `arXiv:1312.6114
       <https://arxiv.org/abs/1312.6114>`_
    .. [2] Cai, Y., Zhang, W., Chen, H., Cheng, K.-T. (2025). "MedIAnomaly: A comparative study of anomaly
       detection in medical images". Medical Image Analysis. `arXiv:2404.04518
       <https://arxiv.org/abs/2404.04518>`_
    .. [3] Zimmerer, D., Isensee, F., Petersen, J., Kohl, S., Maier-Hein, K. (2019). "Unsupervised anomaly
       localization using variational auto-encoders". MICCAI. `arXiv:1907.02796
       <https://arxiv.org/abs/1907.02796>`_

    Examples
    --------
    >>> from skanomaly import VAE
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = VAE(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> sorted(detector.score_components(X[:2]))
    ['combination', 'elbo_gradient', 'kl', 'kl_gradient', 'residual', 'residual_gradient']
    """

    # `kl_weight` is balanced against squared errors on this scale; in [0, 1] they are a quarter as large.
    _image_range = (-1.0, 1.0)

    _parameter_constraints = {
        "loss": [StrOptions(set(ERRORS))],
        "score_component": [StrOptions(MAPS)],
    }

    def __init__(
        self,
        *,
        kl_weight=0.005,
        loss="l2",
        score_component="residual",
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
        self.loss = loss
        self.score_component = score_component
        self._assign_shared(locals())

    def _build(self, image_shape):
        return VariationalAutoEncoder(image_shape, **self._network_size())

    def _train(self, run, network, images):
        options = {"error": ERRORS[self.loss], "kl_weight": self.kl_weight}
        run("reconstruction", Variational, network, images, **options)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        error = ERRORS[self.loss]
        bound = partial(negative_elbo, network, error=error, kl_weight=self.kl_weight)

        def divergence(x):
            return kl_divergence(*network.posterior(x))

        def mean_error(x):
            return error(network(x), x).mean((1, 2))

        # Functions, because a gradient costs a backward pass and most callers need one of the maps only.
        maps = {
            "residual": lambda: error(network(x), x),
            "elbo_gradient": lambda: gradient_map(bound, x),
            "residual_gradient": lambda: gradient_map(mean_error, x),
            "kl_gradient": lambda: gradient_map(divergence, x),
        }
        maps["combination"] = lambda: maps["residual"]() * maps["kl_gradient"]()
        # The default argument keeps this map; without it every lambda would call the last map.
        components = {name: lambda map=map: map().mean((1, 2)) for name, map in maps.items()}
        components["kl"] = lambda: divergence(x)
        shown = maps[self.score_component]()
        return Judgement(shown.mean((1, 2)), shown, components)

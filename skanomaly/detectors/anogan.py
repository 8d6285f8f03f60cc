"""AnoGAN: a search for the generated image that is most like a given one."""

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval
from torch import nn
from torch.nn.functional import softplus

from .._losses import absolute_error
from .._search import search_images
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ConvDiscriminator, ConvGenerator
from ..training import Adversarial


class AnoGANNetwork(nn.Module):
    """Parts `generator` and `discriminator`; buffer `starts`, the codes with which every search begins."""

    def __init__(self, image_shape, latent_size, *, width, n_levels, n_restarts):
        super().__init__()
        size = {"width": width, "n_levels": n_levels}
        self.generator = ConvGenerator(image_shape, latent_size, **size)
        self.discriminator = ConvDiscriminator(image_shape, **size)
        # A buffer, saved with the network: starts drawn at each call would give other scores each time.
        self.register_buffer("starts", torch.empty(n_restarts, latent_size).uniform_(-1, 1))

    def draw_codes(self, n):
        """Uniform codes (n, latent_size), drawn by torch's global generator."""
        return torch.empty(n, self.starts.shape[1], device=self.starts.device).uniform_(-1, 1)


class AnoGAN(TrainedDetector):
    """Anomaly detection with a generative adversarial network and a search (AnoGAN).

    A DCGAN learns to make normal images from codes. For each image that is judged, gradient descent looks for
    the code whose generated image is most similar, in pixels (difference R) and in the features of the
    discriminator (difference D). What the generator cannot reproduce is anomalous. The score is
    (1 - lambda) R + lambda D; the map is the absolute difference of each pixel.

    Parameters
    ----------
    latent_size : int, default=100
        Length of a code, the latent vector of an image.
    width : int, default=16
        Channels of the first level. The next levels have 2, 4 and 8 times as many. The paper's network has
        64 and is meant for a GPU.
    n_levels : int, default=None
        Number of times each side is halved. None halves sides to about 4 pixels (4 times at 64 x 64).
    n_search : int, default=500
        Number of steps of the search, Gamma in the paper.
    n_restarts : int, default=1
        Number of searches from different codes; the best result is kept.
    search_lr : float, default=0.01
        Learning rate of the search.
    discrimination_weight : float, default=0.1
        Weight of the discriminator's features, lambda in the paper, in [0, 1].
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    FAnoGAN : Detector with an encoder in place of the search, some hundred times faster.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: (1 - lambda) R + lambda D: absolute differences summed over pixels, and over the
        discriminator's features
    :Map: absolute difference of each pixel
    :Departures: the search uses Adam, codes are clamped to the prior's range [-1, 1], and the searches for
        all images begin at the same random codes

    R and D are sums, as in the paper. Means would change the balance that lambda sets between them.

    Images are searched in batches, in single precision. The steps for an image depend on that image alone, so
    its score does not depend on the others. The search is expensive: for every image it takes `n_search`
    forward and backward passes through generator and discriminator. `fit` also searches for the training
    images, whose scores set the thresholds.

    `score_components` gives "residual_sum" (R) and "discrimination" (D). "reference" is the score with Yeh's
    loss [2]_, -log D(G(z)), in place of the features. "discriminator" is -log D(x) and needs no search.

    References
    ----------
    .. [1] Schlegl, T., Seeböck, P., Waldstein, S. M., Schmidt-Erfurth, U., Langs, G. (2017). "Unsupervised
       anomaly detection with generative adversarial networks to guide marker discovery". IPMI.
       `arXiv:1703.05921 <https://arxiv.org/abs/1703.05921>`_
    .. [2] Yeh, R. A., Chen, C., Lim, T. Y., Schwing, A. G., Hasegawa-Johnson, M., Do, M. N. (2017).
       "Semantic image inpainting with deep generative models". CVPR. `arXiv:1607.07539
       <https://arxiv.org/abs/1607.07539>`_

    Examples
    --------
    >>> from skanomaly import AnoGAN
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = AnoGAN(width=2, max_epochs=1, n_search=5, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)

    _parameter_constraints = {
        "n_search": [Interval(Integral, 1, None, closed="left")],
        "n_restarts": [Interval(Integral, 1, None, closed="left")],
        "discrimination_weight": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        *,
        latent_size=100,
        width=16,
        n_levels=None,
        n_search=500,
        n_restarts=1,
        search_lr=0.01,
        discrimination_weight=0.1,
        max_epochs=None,
        batch_size=32,
        lr=2e-4,
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
        self.n_search = n_search
        self.n_restarts = n_restarts
        self.search_lr = search_lr
        self.discrimination_weight = discrimination_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        return AnoGANNetwork(image_shape, n_restarts=self.n_restarts, **self._network_size())

    def _train(self, run, network, images):
        run("gan", Adversarial, network, images)

    def _search(self, network, x):
        """Generated images most similar to the images of a batch, and their remaining differences R and D."""
        _, *found = search_images(
            x,
            network.generator,
            network.discriminator.features,
            network.starts,
            discrimination_weight=self.discrimination_weight,
            n_search=self.n_search,
            lr=self.search_lr,
            # The prior is uniform in [-1, 1]: codes beyond it never occurred in training.
            bound=1.0,
        )
        return found

    def _reconstruct(self, network, x):
        return self._search(network, x)[0]

    def _judge(self, network, x):
        y, residual, discrimination = self._search(network, x)
        weight = self.discrimination_weight
        # softplus(-logit) is -log of the probability; the probability itself could round to 0.
        components = {
            "residual_sum": residual,
            "discrimination": discrimination,
            "reference": lambda: (1 - weight) * residual + weight * softplus(-network.discriminator(y)),
            "discriminator": lambda: softplus(-network.discriminator(x)),
        }
        score = (1 - weight) * residual + weight * discrimination
        return Judgement(score, absolute_error(y, x), components)

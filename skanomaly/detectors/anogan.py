"""AnoGAN: search the image most like a given one among those a generator can make."""

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
    """Parts `generator` and `discriminator`; buffer `starts`, the codes every search begins with."""

    def __init__(self, image_shape, latent_size, *, width, n_levels, n_restarts):
        super().__init__()
        size = {"width": width, "n_levels": n_levels}
        self.generator = ConvGenerator(image_shape, latent_size, **size)
        self.discriminator = ConvDiscriminator(image_shape, **size)
        self.register_buffer("starts", torch.empty(n_restarts, latent_size).uniform_(-1, 1))

    def draw_codes(self, n):
        """Uniform codes (n, latent_size), by torch's generator."""
        return torch.empty(n, self.starts.shape[1], device=self.starts.device).uniform_(-1, 1)


class AnoGAN(TrainedDetector):
    """Anomaly detection with a generative adversarial network and a search (AnoGAN).

    A DCGAN learns to make normal images from codes. For each image that is judged, gradient descent looks
    for the code whose image is most like it, in pixels (R) and in the features of the discriminator (D).
    What remains unexplained is the anomaly: the score is (1 - lambda) R + lambda D, the map the absolute
    difference of each pixel.

    Parameters
    ----------
    latent_size : int, default=100
        Numbers in a code.
    width : int, default=16
        Channels of the first level; 2, 4 and 8 times as many follow. 64 is the paper's network, for a GPU.
    n_levels : int, default=None
        Times the image is halved. None brings the longer side to about 4 pixels (4 at 64 x 64).
    n_search : int, default=500
        Steps of the search, Gamma in the paper.
    n_restarts : int, default=1
        Searches from different codes; the best is kept.
    search_lr : float, default=0.01
        Learning rate of the search.
    discrimination_weight : float, default=0.1
        Weight of the discriminator's features, lambda in the paper, in [0, 1].
    max_epochs : int, default=60
        Passes over the normal images.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    FAnoGAN : An encoder in the place of the search, some hundred times faster.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: (1 - lambda) R + lambda D: absolute differences summed over pixels, and over the
        discriminator's features
    :Map: absolute difference of each pixel
    :Departures: the search runs by Adam, codes are clamped to the prior's range [-1, 1], and all images begin
        at the same random codes

    R and D are sums, as in the paper, not means: with means lambda would weigh otherwise.

    The search is batched, and runs in single precision. Each image's steps depend on nothing but that image,
    so scores do not depend on the others. It is dear: `n_search` passes forward and backward through
    generator and discriminator for every image, in `fit` also for the training images, whose scores set the
    thresholds.

    `score_components` gives "residual_sum" (R), "discrimination" (D), "reference", the score with Yeh's loss
    -log D(G(z)) in the place of the features, and "discriminator", -log D(x), which needs no search.

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
        "search_lr": [Interval(Real, 0, None, closed="neither")],
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
        max_epochs=60,
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
        self.latent_size = latent_size
        self.width = width
        self.n_levels = n_levels
        self.n_search = n_search
        self.n_restarts = n_restarts
        self.search_lr = search_lr
        self.discrimination_weight = discrimination_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        return AnoGANNetwork(
            image_shape,
            self.latent_size,
            width=self.width,
            n_levels=self.n_levels,
            n_restarts=self.n_restarts,
        )

    def _train(self, run, network, images):
        run("gan", Adversarial, network, images)

    def _search(self, network, x):
        """Images of the generator most like those of a batch, and the two sums that they leave."""
        _, *found = search_images(
            x,
            network.generator,
            network.discriminator.features,
            network.starts,
            discrimination_weight=self.discrimination_weight,
            n_search=self.n_search,
            lr=self.search_lr,
            bound=1.0,
        )
        return found

    def _reconstruct(self, network, x):
        return self._search(network, x)[0]

    def _judge(self, network, x):
        y, residual, discrimination = self._search(network, x)
        weight = self.discrimination_weight
        components = {
            "residual_sum": residual,
            "discrimination": discrimination,
            "reference": lambda: (1 - weight) * residual + weight * softplus(-network.discriminator(y)),
            "discriminator": lambda: softplus(-network.discriminator(x)),
        }
        score = (1 - weight) * residual + weight * discrimination
        return Judgement(score, absolute_error(y, x), components)

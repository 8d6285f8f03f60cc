"""AnoGAN: a search for the generated image that is most like a given image."""

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
    """Network of `generator`, `discriminator` and the buffer `starts`: codes at which the searches begin."""

    def __init__(self, image_shape, latent_size, *, width, n_levels, n_restarts):
        super().__init__()
        size = {"width": width, "n_levels": n_levels}
        self.generator = ConvGenerator(image_shape, latent_size, **size)
        self.discriminator = ConvDiscriminator(image_shape, **size)
        # A buffer, so that it is saved: starts drawn anew in each call would change the scores.
        self.register_buffer("starts", torch.empty(n_restarts, latent_size).uniform_(-1, 1))

    def draw_codes(self, n):
        """Codes (n, latent_size), uniform in [-1, 1), from torch's global random number generator."""
        return torch.empty(n, self.starts.shape[1], device=self.starts.device).uniform_(-1, 1)


class AnoGAN(TrainedDetector):
    """Anomaly detection with a generative adversarial network and a search (AnoGAN).

    A convolutional GAN (DCGAN) learns to make normal images from codes. To judge an image, gradient descent
    searches for the code whose generated image is most similar to the image, in pixels (difference R) and in
    the features of the discriminator (difference D). What the generator cannot reproduce counts as anomalous.
    The score is (1 - lambda) R + lambda D, where lambda is `discrimination_weight`. The map is the absolute
    difference between image and generated image in each pixel.

    Parameters
    ----------
    latent_size : int, default=100
        Length of a code, the latent vector of an image.
    width : int, default=16
        Channels of the first of the `n_levels` levels. The second has 2 times as many, the third 4 times and
        all others 8 times. The paper's network has a width of 64, which is slow without a GPU.
    n_levels : int, default=None
        Number of levels, each of which halves both sides of its input. None halves each side to about 4
        pixels (4 levels at 64 x 64).
    n_search : int, default=500
        Number of steps of a search, Gamma in the paper.
    n_restarts : int, default=1
        Number of searches for each image, each from another random code. The best result is kept.
    search_lr : float, default=0.01
        Learning rate of the search.
    discrimination_weight : float, default=0.1
        Weight of D, the difference in the discriminator's features, in [0, 1]; lambda in the paper.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    FAnoGAN : Detector with an encoder in place of the search, more than a hundred times as fast.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: (1 - lambda) R + lambda D: R is the sum of absolute differences over pixels, D that over the
        discriminator's features
    :Map: absolute difference of each pixel
    :Departures: the search uses Adam, codes are clamped to [-1, 1], the range of the codes in training, and
        the searches for all images begin at the same random codes; {max_epochs steps} training steps, about
        312,000 in the paper (20 passes over a million patches)

    R and D are sums, as in the paper. With means, lambda would set another balance between pixels and
    features.

    The search runs for a batch of images at once, in single precision. The steps for an image depend on that
    image alone, so its score does not depend on the other images. The search is expensive: for every image
    and every restart it takes `n_search` forward and backward passes through generator and discriminator.
    `fit` also searches for the training images, because their scores set the thresholds.

    The components of `score_components` are "residual_sum" (R), "discrimination" (D), "reference" and
    "discriminator". "reference" is the score with the loss of Yeh et al. [2]_ in place of D: -log p, where p
    is the discriminator's probability that the generated image is real. "discriminator" is -log p of the
    image itself and needs no search.

    Both R and D are smaller for blurred images. On chest X-rays, where the ill are blurred, the score has an
    AUROC of .43, and of .67 among images of like sharpness (``python benchmarks/accuracy.py --limit 0
    --threads 1 --sets cxr_pneumonia_64 --detectors AnoGAN``). "discriminator" is above .7 there.

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
        """Generated images found for the images of a batch, and the differences R and D that remain, (n,)."""
        _, *found = search_images(
            x,
            network.generator,
            network.discriminator.features,
            network.starts,
            discrimination_weight=self.discrimination_weight,
            n_search=self.n_search,
            lr=self.search_lr,
            # In training codes are uniform in [-1, 1]: the generator has never seen codes beyond.
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

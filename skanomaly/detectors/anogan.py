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

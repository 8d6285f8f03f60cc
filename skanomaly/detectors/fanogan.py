"""f-AnoGAN: a generator that learns normal images only, and an encoder that inverts the generator."""

import warnings
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._inference import collect
from .._losses import absolute_error, feature_error, squared_error
from .._random import draw_seed, seeded
from .._search import search_images
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ResidualCritic, ResidualEncoder, ResidualGenerator
from ..training import Training, Wasserstein

#: Largest number of training images in m_x, the mean of the critic; the paper takes as many test images.
N_CRITIC_MEAN = 32_000


class FAnoGANNetwork(nn.Module):
    """Network of `generator`, `critic`, `encoder` and the buffer `critic_mean`, m_x in the paper."""

    def __init__(self, image_shape, latent_size, *, width, n_levels, prior, output, bound):
        super().__init__()
        size = {"width": width, "n_levels": n_levels}
        self.generator = ResidualGenerator(image_shape, latent_size, **size)
        self.critic = ResidualCritic(image_shape, **size)
        self.encoder = ResidualEncoder(image_shape, latent_size, output=output, bound=bound, **size)
        self.register_buffer("critic_mean", torch.zeros(()))
        self.latent_size, self.prior = latent_size, prior

    def draw_codes(self, n):
        """Codes (n, latent_size) from the prior, drawn by torch's global random number generator."""
        z = torch.empty(n, self.latent_size, device=self.critic_mean.device)
        return z.normal_() if self.prior == "normal" else z.uniform_(-1, 1)

    def forward(self, x):
        return self.generator(self.encoder(x))

    def feature_error(self, x, y):
        return feature_error(self.critic.features(x), self.critic.features(y))


class Inversion(Training):
    """Train the encoder to invert the frozen generator.

    The loss of `kind` "izi" compares the pixels of an image and of its reconstruction, "izi_f" also compares
    their critic features. "ziz" compares a random code with the code of the image generated from it.

    Parameters
    ----------
    network : FAnoGANNetwork
    kind : {"izi_f", "izi", "ziz"}
    feature_weight : float
    """

    # No optimiser trains generator and critic, so they are in eval mode, as in scoring.
    moves = {"optimizer": ["encoder"]}
    losses = ("train_loss",)
    validates = True

    def __init__(self, network, *, kind, feature_weight, **options):
        self.kind, self.feature_weight = kind, feature_weight
        super().__init__(network, **options)

    def step(self, network, x):
        self.move("optimizer", train_loss=self.validate(network, x))

    def validate(self, network, x):
        if self.kind == "ziz":
            # Codes are drawn anew in every epoch, also to validate: valid_loss has the noise of these draws.
            z = network.draw_codes(len(x))
            return (network.encoder(network.generator(z)) - z).square().mean()
        y = network(x)
        loss = squared_error(y, x).mean()
        if self.kind == "izi_f":
            loss = loss + self.feature_weight * network.feature_error(y, x).mean()
        return loss


class FAnoGAN(TrainedDetector):
    """Fast anomaly detection with a generative adversarial network (f-AnoGAN).

    A Wasserstein GAN with gradient penalty (WGAN-GP) learns to make normal images from codes. Then
    generator and critic are frozen, and an encoder learns to find the code of an image. The image
    generated from this code, the reconstruction, is compared with the image itself, in pixels (A_R)
    and in the features of the critic (A_D). The score is A_R + `feature_weight` * A_D. If
    `encoder_training` is "izi" or "ziz", the score is A_R alone. The map is the squared difference of
    each pixel.

    Parameters
    ----------
    latent_size : int, default=128
        Length of a code, the latent vector of an image; d in the paper.
    width : int, default=8
        Channels before the first of the `n_levels` levels. The first level has 2 times as many, the
        second 4 times and all others 8 times. The paper's network has a width of 64, which is slow
        without a GPU. With the default, a few hundred images of 64 x 64 are learned in minutes on two
        CPU cores.
    n_levels : int, default=None
        Number of levels, each of which halves both sides of its input. None halves each side to about
        4 pixels (4 levels at 64 x 64).
    prior : {"normal", "uniform"}, default="normal"
        Distribution of the codes in training: standard normal, or uniform in [-1, 1].
    encoder_training : {"izi_f", "izi", "ziz"}, default="izi_f"
        Loss of the encoder. "izi": difference between an image and its reconstruction in pixels.
        "izi_f": the same, plus the difference in the critic's features. "ziz": difference between a
        code drawn from the prior and the code of the image generated from it.
    encoder_output : {"tanh", "clip", "linear"}, default="tanh"
        Last operation of the encoder: `encoder_bound` * tanh, clipping to ± `encoder_bound`, or none.
    encoder_bound : float, default=1.0
        Largest absolute value of a coordinate of a code, if `encoder_output` is "tanh" or "clip".
    feature_weight : float, default=1.0
        Weight of the critic's features in the encoder's loss and in the score, kappa in the paper. It
        is used only if `encoder_training` is "izi_f".
    penalty_weight : float, default=10.0
        Weight of the gradient penalty in the critic's loss.
    n_critic : int, default=5
        Number of critic steps for each generator step.
    encoder_epochs : int, default=30
        Passes over the normal images in the training of the encoder.

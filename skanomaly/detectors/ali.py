"""ALI: a generator and an encoder learn to make pairs (image, code) that cannot be told apart."""

from numbers import Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn
from torch.nn.functional import softplus

from .._losses import absolute_error
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ConvDiscriminator, ConvGenerator
from ..training import Training, discriminator_loss


class PairEncoder(ConvDiscriminator):
    """Images to codes. A `stochastic` encoder draws codes in train mode and returns means in eval mode."""

    def __init__(self, image_shape, latent_size, *, stochastic, width, n_levels):
        super().__init__(image_shape, width=width, n_levels=n_levels)
        self.stochastic, self.latent_size = stochastic, latent_size
        self.value = nn.Linear(self.value.in_features, latent_size * (2 if stochastic else 1))

    def forward(self, x):
        mean, *log_variance = self.value(self.features(x)).split(self.latent_size, dim=1)
        if not (self.training and log_variance):
            return mean
        # Clamped, because the exponential of an unbounded log-variance can overflow.
        return mean + torch.exp(0.5 * log_variance[0].clamp(-10, 10)) * torch.randn_like(mean)


class PairDiscriminator(nn.Module):
    """Pairs (image, code) to logits (n,). `features` returns the input (n, n_features) of the last layer."""

    def __init__(self, image_shape, latent_size, *, width, n_levels):
        super().__init__()
        self.image = ConvDiscriminator(image_shape, width=width, n_levels=n_levels)
        n_features, n_hidden = self.image.value.in_features, 16 * width
        # `self.image` only computes features. Its last layer would be saved without ever being trained.
        self.image.value = nn.Identity()
        self.code = nn.Sequential(nn.Linear(latent_size, n_hidden), nn.LeakyReLU(0.2))
        self.pair = nn.Sequential(nn.Linear(n_features + n_hidden, n_hidden), nn.LeakyReLU(0.2))
        self.value = nn.Linear(n_hidden, 1)

    def features(self, x, z):
        return self.pair(torch.cat([self.image.features(x), self.code(z)], dim=1))

    def forward(self, x, z):
        return self.value(self.features(x, z))[:, 0]


class ALINetwork(nn.Module):
    """Network with the parts `generator`, `encoder` and `discriminator`."""

    def __init__(self, image_shape, latent_size, *, stochastic, width, n_levels):
        super().__init__()
        size = {"width": width, "n_levels": n_levels}
        self.generator = ConvGenerator(image_shape, latent_size, **size)
        self.encoder = PairEncoder(image_shape, latent_size, stochastic=stochastic, **size)
        self.discriminator = PairDiscriminator(image_shape, latent_size, **size)
        self.latent_size = latent_size

    def forward(self, x):
        return self.generator(self.encoder(x))


class PairAdversarial(Training):
    """Each batch trains the discriminator of pairs, then generator and encoder against the discriminator.

    Parameters
    ----------
    network : ALINetwork
    """

    moves = {"optimizer": ["generator", "encoder"], "optimizer_discriminator": ["discriminator"]}
    losses = "discriminator_loss", "generator_loss"
    betas = 0.5, 0.999

    def step(self, network, x):
        discriminator = network.discriminator
        z = torch.randn(len(x), network.latent_size, device=x.device)
        y, code = network.generator(z), network.encoder(x)
        loss = discriminator_loss(discriminator(x, code.detach()), discriminator(y.detach(), z))
        self.move("optimizer_discriminator", discriminator_loss=loss)
        # Generator and encoder minimise the discriminator's loss with the two pairs exchanged.
        loss = discriminator_loss(discriminator(y, z), discriminator(x, code))
        self.move("optimizer", generator_loss=loss)


class ALI(TrainedDetector):
    """Adversarially learned inference (ALI, BiGAN).

    A generator makes images from codes, and an encoder makes codes from images. A discriminator learns to
    tell the generator's pairs (image, code) from the encoder's pairs, and both networks learn to deceive the
    discriminator. The reconstruction of an image is the image that the generator makes from its code. The
    score has two terms. The first is the difference between image and reconstruction. The second comes from
    the discriminator, see `discrimination`. The map is the absolute difference between image and
    reconstruction in each pixel.

    Parameters
    ----------
    latent_size : int, default=64
        Length of a code, the latent vector of an image.
    width : int, default=16
        Channels of the first of the `n_levels` levels. The second has 2 times as many, the third 4 times and
        all others 8 times.
    n_levels : int, default=None
        Number of levels, each of which halves both sides of its input. None halves each side to about 4
        pixels (4 levels at 64 x 64).
    stochastic : bool, default=True
        Whether the encoder, in training, draws codes from a distribution (ALI) or computes a fixed code
        (BiGAN).
    discrimination : {"feature_matching", "cross_entropy"}, default="feature_matching"
        Second term of the score. "feature_matching": sum of absolute differences between the discriminator's
        features of the pair (image, code) and those of the pair (reconstruction, code). "cross_entropy":
        -log D, where D is the discriminator's probability that the encoder made the pair (reconstruction,
        code).
    discrimination_weight : float, default=0.1
        Weight w of the second term, in [0, 1]. The weight of the first term is 1 - w.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    FAnoGAN : Detector whose encoder is trained after the GAN, to reconstruct images.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: (1 - w) times the sum of absolute differences between image and reconstruction, plus w times the
        discriminator's term
    :Map: absolute difference of each pixel
    :Departures: the networks are those of DCGAN; images are judged with the last weights, whereas the public
        code for BiGAN [3]_ averages weights over training; images are judged by the encoder's mean codes
    :Variants:
        * ALI: ``ALI()``
        * BiGAN: ``ALI(stochastic=False)``
        * BiGAN, scored by cross-entropy: ``ALI(stochastic=False, discrimination="cross_entropy")``

    No loss compares an image with its reconstruction. The reconstruction is therefore similar to the image,
    but not a copy of it.

    The components of `score_components` are "residual_sum" (the first term), and "feature_matching" and
    "cross_entropy" (the two choices of the second term).

    References
    ----------
    .. [1] Dumoulin, V., Belghazi, I., Poole, B., Mastropietro, O., Lamb, A., Arjovsky, M., Courville, A.
       (2017). "Adversarially learned inference". ICLR. `arXiv:1606.00704 <https://arxiv.org/abs/1606.00704>`_
    .. [2] Donahue, J., Krähenbühl, P., Darrell, T. (2017). "Adversarial feature learning". ICLR.
       `arXiv:1605.09782 <https://arxiv.org/abs/1605.09782>`_
    .. [3] Zenati, H., Foo, C. S., Lecouat, B., Manek, G., Chandrasekhar, V. R. (2018). "Efficient GAN-based
       anomaly detection". `arXiv:1802.06222 <https://arxiv.org/abs/1802.06222>`_

    Examples
    --------
    >>> from skanomaly import ALI
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = ALI(width=2, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)

    _parameter_constraints = {
        "stochastic": ["boolean"],
        "discrimination": [StrOptions({"feature_matching", "cross_entropy"})],
        "discrimination_weight": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        *,
        latent_size=64,
        width=16,
        n_levels=None,
        stochastic=True,
        discrimination="feature_matching",
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
        self.stochastic = stochastic
        self.discrimination = discrimination
        self.discrimination_weight = discrimination_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        return ALINetwork(image_shape, stochastic=self.stochastic, **self._network_size())

    def _train(self, run, network, images):
        run("pairs", PairAdversarial, network, images)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        discriminator, z = network.discriminator, network.encoder(x)
        y = network.generator(z)
        features = discriminator.features(y, z)
        # Sums, as in the public code for BiGAN: means would change the balance between the two terms.
        components = {
            "residual_sum": (x - y).abs().sum((1, 2, 3)),
            "feature_matching": (discriminator.features(x, z) - features).abs().sum(1),
            "cross_entropy": softplus(-discriminator.value(features)[:, 0]),
        }
        weight = self.discrimination_weight
        score = (1 - weight) * components["residual_sum"] + weight * components[self.discrimination]
        return Judgement(score, absolute_error(y, x), components)

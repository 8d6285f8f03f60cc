"""ALI: a generator and an encoder learn each other's pairs of image and code."""

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
    """The discriminator's trunk, to codes: a draw from a normal distribution in training, its mean after."""

    def __init__(self, image_shape, latent_size, *, stochastic, width, n_levels):
        super().__init__(image_shape, width=width, n_levels=n_levels)
        self.stochastic, self.latent_size = stochastic, latent_size
        self.value = nn.Linear(self.value.in_features, latent_size * (2 if stochastic else 1))

    def forward(self, x):
        mean, *log_variance = self.value(self.features(x)).split(self.latent_size, dim=1)
        if not (self.training and log_variance):
            return mean
        return mean + torch.exp(0.5 * log_variance[0].clamp(-10, 10)) * torch.randn_like(mean)


class PairDiscriminator(nn.Module):
    """Logit (n,) of pairs (image, code); `features` (n, n_features) before the last layer."""

    def __init__(self, image_shape, latent_size, *, width, n_levels):
        super().__init__()
        self.image = ConvDiscriminator(image_shape, width=width, n_levels=n_levels)
        n_features, n_hidden = self.image.value.in_features, 16 * width
        self.image.value = nn.Identity()
        self.code = nn.Sequential(nn.Linear(latent_size, n_hidden), nn.LeakyReLU(0.2))
        self.pair = nn.Sequential(nn.Linear(n_features + n_hidden, n_hidden), nn.LeakyReLU(0.2))
        self.value = nn.Linear(n_hidden, 1)

    def features(self, x, z):
        return self.pair(torch.cat([self.image.features(x), self.code(z)], dim=1))

    def forward(self, x, z):
        return self.value(self.features(x, z))[:, 0]


class ALINetwork(nn.Module):
    """Parts `generator`, `encoder` and `discriminator`."""

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
    """Every batch moves the discriminator of pairs, then generator and encoder against it.

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
        # Each wants the label that the discriminator does not: the same loss with the pairs exchanged.
        loss = discriminator_loss(discriminator(y, z), discriminator(x, code))
        self.move("optimizer", generator_loss=loss)


class ALI(TrainedDetector):
    """Adversarially learned inference (ALI, BiGAN).

    A generator makes images from codes and an encoder codes from images, while a discriminator sees pairs of
    both and learns which of the two a pair is from. An image is anomalous as far as it differs from the image
    that its code makes, and as far as the discriminator tells that pair from real ones.

    Parameters
    ----------
    latent_size : int, default=64
        Numbers in a code.
    width : int, default=16
        Channels of the first level; 2, 4 and 8 times as many follow.
    n_levels : int, default=None
        Times the image is halved. None brings the longer side to about 4 pixels (4 at 64 x 64).
    stochastic : bool, default=True
        Whether the encoder draws its codes (ALI) or fixes them (BiGAN).
    discrimination : {"feature_matching", "cross_entropy"}, default="feature_matching"
        Second term of the score: absolute difference of the discriminator's features of the pairs of image
        and reconstruction, or -log D of the latter.
    discrimination_weight : float, default=0.1
        Weight of the second term, in [0, 1].
    max_epochs : int, default=100
        Passes over the normal images.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    FAnoGAN : Trains the encoder after the GAN, on what it must reconstruct.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: (1 - w) times the absolute differences of x and G(E(x)), summed, and w times the
        discriminator's term
    :Map: absolute difference of each pixel
    :Departures: networks are DCGAN's; the public code for BiGAN [3]_ scores with averaged weights, here they
        are the last; codes are the encoder's means when images are judged
    :Variants:
        * ALI: ``ALI()``
        * BiGAN: ``ALI(stochastic=False)``
        * BiGAN, scored by cross-entropy: ``ALI(stochastic=False, discrimination="cross_entropy")``

    Nothing makes G(E(x)) resemble x but the game itself: reconstructions are of the kind of x, not copies.

    `score_components` gives "residual", "feature_matching" and "cross_entropy".

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
        max_epochs=100,
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
        self.stochastic = stochastic
        self.discrimination = discrimination
        self.discrimination_weight = discrimination_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        return ALINetwork(
            image_shape,
            self.latent_size,
            stochastic=self.stochastic,
            width=self.width,
            n_levels=self.n_levels,
        )

    def _train(self, run, network, images):
        run("pairs", PairAdversarial, network, images)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        discriminator, z = network.discriminator, network.encoder(x)
        y = network.generator(z)
        features = discriminator.features(y, z)
        components = {
            "residual_sum": (x - y).abs().sum((1, 2, 3)),
            "feature_matching": (discriminator.features(x, z) - features).abs().sum(1),
            "cross_entropy": softplus(-discriminator.value(features)[:, 0]),
        }
        weight = self.discrimination_weight
        score = (1 - weight) * components["residual_sum"] + weight * components[self.discrimination]
        return Judgement(score, absolute_error(y, x), components)
